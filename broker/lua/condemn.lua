-- Adds a dead letter for a message that has no entry: a follow-up message that could not be enqueued.
--
-- KEYS     1 dead (see dead.lua)  2 recent of the follow-up message  3 counters
-- ARGV     enqueue id, ms to remember it, ms to keep dead letters, how many to keep, how many bytes to keep, then names
--          and values of the dead letter's fields
-- Returns  id of the dead letter, or "" if the follow-up message was enqueued before or is already a dead letter

local dead, recent, counters = KEYS[1], KEYS[2], KEYS[3]
local enqueue_id, remember_ms, keep_ms, keep_n = ARGV[1], ARGV[2], tonumber(ARGV[3]), ARGV[4]
local keep_bytes = tonumber(ARGV[5])

if redis.call('SET', recent, enqueue_id, 'PX', remember_ms, 'GET') == enqueue_id then
  return ''
end
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
return add_dead_letter(dead, counters, {unpack(ARGV, 6)}, now, keep_ms, keep_n, keep_bytes)
