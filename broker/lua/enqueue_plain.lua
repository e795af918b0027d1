-- Adds one message without a delay, unique key or ordering key to a queue without a limit, which is the common case.
-- Does the same as enqueue.lua and takes the server half the time.
--
-- KEYS     1 stream  2 recent of this producer  3 counters
-- ARGV     enqueue id, ms to remember it, payload: as in enqueue.lua
-- Returns  ADDED, even when the call is repeated

local stream, recent, counters = KEYS[1], KEYS[2], KEYS[3]
local enqueue_id, remember_ms, payload = ARGV[1], ARGV[2], ARGV[3]

if redis.call('SET', recent, enqueue_id, 'PX', remember_ms, 'GET') ~= enqueue_id then
  redis.call('XADD', stream, '*', 'message', payload)
  redis.pcall('HINCRBY', counters, 'enqueued', 1)
end
return 'ADDED'
