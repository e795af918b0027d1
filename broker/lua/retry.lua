-- Adds the retry of a failed message and removes its entry, in one step.
--
-- KEYS     1–9 work  10 suspects  11 counters  12 cancelled  13 unique key of the message (optional)
-- ARGV     group, consumer, delivery count, entry id, message id, payload, name in delayed, delay in ms (0 = none),
--          key ("" = none) and limits (see work.lua), ms after which the unique lock ends,
--          ms for which retries may hold an ordering key (-1 = no limit)
-- Returns  RETRIED, or why nothing was written: FENCED (the caller does not hold the entry), GONE (the entry was
--          removed), HELD (retries have held the ordering key for the maximum time), or CANCELLED, a space and the mark
--          in cancelled
--
-- The retry waits like any message: it takes the lock of its unique key, unless a message that was enqueued during the
-- job has it. With a concurrency or rate key, the retry is not at work before it is due. Then it gets its turn or waits
-- in line. With an ordering key, the retry is due no later than the time until which it may hold the key, so that its
-- last attempt runs at that time.
-- Works when the server's memory is full, because Redis lets a script finish if its first write needs no memory.

local stream, suspects, counters, cancelled, unique = KEYS[1], KEYS[10], KEYS[11], KEYS[12], KEYS[13]
local group, consumer, deliveries, id = ARGV[1], ARGV[2], tonumber(ARGV[3]), ARGV[4]
local message_id, payload, name, delay = ARGV[5], ARGV[6], ARGV[7], tonumber(ARGV[8])
local key, limits, lock_ms, hold_ms = ARGV[9], ARGV[10], ARGV[11], tonumber(ARGV[12])
local holds = key ~= '' and is_ordering(key)

redis.call('ZREM', work.delayed, '')
if not redis.call('XRANGE', stream, id, id)[1] then
  redis.pcall('XACK', stream, group, id)
  leave_work(key, id)
  return 'GONE'
end
local pending = redis.pcall('XPENDING', stream, group, id, id, 1)
if pending.err or not pending[1] or pending[1][2] ~= consumer or pending[1][4] ~= deliveries then
  redis.pcall('HINCRBY', counters, 'fenced', 1)
  return 'FENCED'
end
local mark = redis.call('HGET', cancelled, id)
if mark then
  return 'CANCELLED ' .. mark
end
local now = server_ms()
if holds and hold_ms >= 0 then
  local held_ms = now - tonumber(redis.call('HGET', work.limits, key .. '\0since') or now)
  if held_ms >= hold_ms then
    return 'HELD'
  end
  delay = math.min(delay, hold_ms - held_ms)
end

redis.call('XACK', stream, group, id)
redis.pcall('HINCRBY', counters, 'removed', redis.call('XDEL', stream, id))
redis.pcall('HDEL', suspects, id)
if key ~= '' and not holds then
  leave_work(key, id)
end
local where = name
-- if the retry has an ordering key and a rate, the janitor that promotes it checks whether it may start
if delay > 0 or (holds and limits ~= '') then
  put_off(name, now + delay, payload)
elseif holds or key == '' then
  where = redis.call('XADD', stream, '*', 'message', payload)
else
  where = arrive(key, name, 0, payload, limits)
end
if holds then
  redis.call('ZREM', work.at_work, unstarted(key) .. '\0' .. id)
  move_at_work(key, id, where)
  redis.call('HSETNX', work.limits, key .. '\0since', now)
end
if unique then
  let_go(message_id, id)
  take_lock(unique, message_id, lock_ms, where)
end
redis.pcall('HINCRBY', counters, 'retried', 1)
return 'RETRIED'
