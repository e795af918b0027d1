-- Puts a message that failed back to work, and removes the entry it came from, in one step.
--
-- KEYS     1–7 work  8 suspects  9 counters
-- ARGV     group, consumer, delivery count, entry id, payload, name in delayed, delay in ms (0 = none),
--          ordering key ("" = none)
-- Returns  RETRIED, or why nothing was written: FENCED (another holds it, or nobody) or GONE (the entry was removed)
--
-- A full server takes it: nothing is added that was not there, and the first write needs no memory.

local stream, suspects, counters = KEYS[1], KEYS[8], KEYS[9]
local group, consumer, deliveries, id = ARGV[1], ARGV[2], tonumber(ARGV[3]), ARGV[4]
local payload, name, delay, key = ARGV[5], ARGV[6], tonumber(ARGV[7]), ARGV[8]

redis.call('ZREM', work.delayed, '')
if not redis.call('XRANGE', stream, id, id)[1] then
  redis.pcall('XACK', stream, group, id)
  next_in_line(key, id)
  return 'GONE'
end
local pending = redis.pcall('XPENDING', stream, group, id, id, 1)
if pending.err or not pending[1] or pending[1][2] ~= consumer or pending[1][4] ~= deliveries then
  redis.call('HINCRBY', counters, 'fenced', 1)
  return 'FENCED'
end

local where = name
if delay > 0 then
  put_off(name, server_ms() + delay, payload)
else
  where = redis.call('XADD', stream, '*', 'message', payload)
end
if key ~= '' then
  note_where(key, id, where)
end
redis.call('XACK', stream, group, id)
redis.call('HINCRBY', counters, 'removed', redis.call('XDEL', stream, id))
redis.call('HDEL', suspects, id)
redis.call('HINCRBY', counters, 'retried', 1)
return 'RETRIED'
