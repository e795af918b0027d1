-- Deregisters a consumer whose process stops or has died. Removes the consumer itself if it holds no entries.
--
-- KEYS     1 stream  2 consumers  3 timer
-- ARGV     group, consumer, 1: its process is dead
-- Returns  1 if it still holds entries, otherwise 0. If the process is dead, others take over these entries at once;
--          otherwise, when they have been idle for the lease time

local stream, consumers, timer = KEYS[1], KEYS[2], KEYS[3]
local group, me, is_dead = ARGV[1], ARGV[2], ARGV[3] == '1'

redis.call('ZREM', consumers, me)
local pending = redis.pcall('XPENDING', stream, group, '-', '+', 1, me)
if pending.err then
  return 0
end
if #pending == 0 then
  redis.call('XGROUP', 'DELCONSUMER', stream, group, me)
  return 0
end
if is_dead then
  redis.call('ZADD', consumers, 0, me)
  redis.pcall('XADD', timer, 'MAXLEN', 16, '*', 'died', me)
end
return 1
