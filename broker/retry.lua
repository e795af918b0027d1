-- Puts a message that failed back to work, and removes the entry it came from, in one step.
--
-- KEYS     1 stream  2 delayed  3 delayed:messages  4 timer  5 suspects  6 counters
-- ARGV     group, consumer, delivery count, entry id, payload, name in delayed, delay in ms (0 = none)
-- Returns  RETRIED, or why nothing was written: FENCED (another holds it, or nobody) or GONE (the entry was removed)

local stream, delayed, messages, timer, suspects, counters = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5], KEYS[6]
local group, consumer, deliveries, id = ARGV[1], ARGV[2], tonumber(ARGV[3]), ARGV[4]
local payload, name, delay = ARGV[5], ARGV[6], tonumber(ARGV[7])

if not redis.call('XRANGE', stream, id, id)[1] then
  redis.pcall('XACK', stream, group, id)
  return 'GONE'
end
local pending = redis.pcall('XPENDING', stream, group, id, id, 1)
if pending.err or not pending[1] or pending[1][2] ~= consumer or pending[1][4] ~= deliveries then
  redis.call('HINCRBY', counters, 'fenced', 1)
  return 'FENCED'
end

if delay > 0 then
  local time = redis.call('TIME')
  local due = time[1] * 1000 + math.floor(time[2] / 1000) + delay
  redis.call('HSET', messages, name, payload)
  redis.call('ZADD', delayed, due, name)
  if redis.call('ZRANGE', delayed, 0, 0)[1] == name then
    redis.call('XADD', timer, 'MAXLEN', 1, '*', 'due', due)
  end
else
  redis.call('XADD', stream, '*', 'message', payload)
end
redis.call('XACK', stream, group, id)
redis.call('XDEL', stream, id)
redis.call('HDEL', suspects, id)
redis.call('HINCRBY', counters, 'retried', 1)
return 'RETRIED'
