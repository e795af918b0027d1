-- Acknowledges finished messages and removes their entries.
--
-- KEYS     1–9 work  10 suspects  11 counters  12… the unique key of each message that is still in holders, then recent
--          of each follow-up message that these messages enqueued
-- ARGV     group, consumer, number of entries, number of those that have a key, number of unique keys,
--          then per entry: id, delivery count; then per entry that has a key: id, key (see work.lua);
--          then per unique key: message id, entry id; then per follow-up message: the place of its entry, from 1
-- Returns  {number acknowledged by their holder, number finished here although another consumer holds them now, number
--          already removed}
--
-- Success is accepted whichever consumer holds the entry now, because the job is done. Messages must be acknowledged
-- even when the server's memory is full. Redis then lets a script finish if its first write needs no memory.
--
-- The keys that record follow-up messages are deleted with their entry. If another consumer holds the entry now, they
-- are kept until they expire, because that consumer may enqueue the same follow-up messages.

local FIXED = 5
local stream, suspects, counters = KEYS[1], KEYS[10], KEYS[11]
local group, consumer, n, n_ordered = ARGV[1], ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4])
local n_unique = tonumber(ARGV[5])

local ids, is_held, n_held = {}, {}, 0
for i = FIXED + 1, FIXED + 2 * n, 2 do
  local id = ARGV[i]
  ids[#ids + 1] = id
  local pending = redis.pcall('XPENDING', stream, group, id, id, 1)
  if not pending.err and pending[1] and pending[1][2] == consumer and pending[1][4] == tonumber(ARGV[i + 1]) then
    n_held = n_held + 1
    is_held[#ids] = true
  end
end
if redis.call('EXISTS', suspects) == 1 then
  redis.pcall('HDEL', suspects, unpack(ids))
end

redis.pcall('XACK', stream, group, unpack(ids))
local n_removed = redis.call('XDEL', stream, unpack(ids))
local n_late = math.max(0, n_removed - n_held)

for i = FIXED + 2 * n + 1, FIXED + 2 * (n + n_ordered), 2 do
  leave_work(ARGV[i + 1], ARGV[i])
end
for i = 12, 11 + n_unique do
  local at = FIXED + 2 * (n + n_ordered + i - 12)
  unlock(KEYS[i], ARGV[at + 1], ARGV[at + 2])
end
local at_followers = FIXED + 2 * (n + n_ordered + n_unique)
for i = 12 + n_unique, #KEYS do
  if is_held[tonumber(ARGV[at_followers + i - 11 - n_unique])] then
    redis.call('DEL', KEYS[i])
  end
end

redis.pcall('HINCRBY', counters, 'acked', n_removed)
redis.pcall('HINCRBY', counters, 'removed', n_removed)
if n_late > 0 then
  redis.pcall('HINCRBY', counters, 'late', n_late)
end
return {n_removed - n_late, n_late, n - n_removed}
