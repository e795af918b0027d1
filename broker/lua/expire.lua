-- Removes the entry of a message that did not start before it expired.
--
-- KEYS     1–9 work  10 suspects  11 counters  12 unique key of the message (optional)
-- ARGV     group, consumer, delivery count, entry id, message id, key ("" = none; see work.lua)
-- Returns  EXPIRED, or why nothing was removed: FENCED (the caller does not hold the entry), GONE (the entry was
--          removed)
--
-- Works when the server's memory is full, because Redis lets a script finish if its first write needs no memory.

local stream, suspects, counters, unique = KEYS[1], KEYS[10], KEYS[11], KEYS[12]
local group, consumer, deliveries, id, message_id, key = ARGV[1], ARGV[2], tonumber(ARGV[3]), ARGV[4], ARGV[5], ARGV[6]

redis.call('ZREM', work.delayed, '')
local pending = redis.pcall('XPENDING', stream, group, id, id, 1)
if redis.call('XRANGE', stream, id, id)[1]
  and (pending.err or not pending[1] or pending[1][2] ~= consumer or pending[1][4] ~= deliveries) then
  redis.pcall('HINCRBY', counters, 'fenced', 1)
  return 'FENCED'
end
redis.pcall('XACK', stream, group, id)
local n = redis.call('XDEL', stream, id)
redis.pcall('HDEL', suspects, id)
if unique then
  unlock(unique, message_id, id)
end
if key ~= '' then
  leave_work(key, id)
end
redis.pcall('HINCRBY', counters, 'removed', n)
redis.pcall('HINCRBY', counters, 'expired', n)
return n == 1 and 'EXPIRED' or 'GONE'
