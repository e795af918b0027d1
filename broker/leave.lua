-- Takes a consumer out that stops: its heartbeat, and itself where it holds nothing.
--
-- KEYS     1 stream  2 consumers
-- ARGV     group, consumer
-- Returns  how many entries it still holds; others take them over when they have been idle for a lease

local stream, consumers = KEYS[1], KEYS[2]
local group, me = ARGV[1], ARGV[2]

redis.call('ZREM', consumers, me)
local pending = redis.pcall('XPENDING', stream, group, '-', '+', 1000, me)
if pending.err then
  return 0
end
if #pending == 0 then
  redis.call('XGROUP', 'DELCONSUMER', stream, group, me)
end
return #pending
