-- Writes the text that identifies the cold store of this Redis server, unless it has changed since the caller read it.
--
-- KEYS     1 the text
-- ARGV     known   the text that the caller has read, "" = none
--          new     the text to write
-- Returns  the text that is there now; false if there is none

local found = redis.call('GET', KEYS[1])
if (found or '') ~= ARGV[1] then
  return found
end
-- first a write that needs no memory, because moves free it when Redis is full
redis.call('DEL', KEYS[1])
redis.call('SET', KEYS[1], ARGV[2])
return ARGV[2]
