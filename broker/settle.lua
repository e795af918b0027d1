-- Acknowledges messages that are done, and removes their entries.
--
-- KEYS     1–7 work  8 suspects  9 counters
-- ARGV     group, consumer, number of entries, then per entry: id, delivery count,
--          then per entry that has an ordering key: id, ordering key
-- Returns  {acked, late, gone}   late: done here, though somebody else held it meanwhile; gone: removed already
--
-- Success is believed whoever holds the entry now: the job is done. A full server lets a script finish whose first write
-- needs no memory: it must be able to acknowledge.

local stream, suspects, counters = KEYS[1], KEYS[8], KEYS[9]
local group, consumer, n = ARGV[1], ARGV[2], tonumber(ARGV[3])

local ids, n_held = {}, 0
for i = 4, 2 + 2 * n, 2 do
  local id = ARGV[i]
  ids[#ids + 1] = id
  local pending = redis.pcall('XPENDING', stream, group, id, id, 1)
  if not pending.err and pending[1] and pending[1][2] == consumer and pending[1][4] == tonumber(ARGV[i + 1]) then
    n_held = n_held + 1
  end
end
if redis.call('EXISTS', suspects) == 1 then
  redis.call('HDEL', suspects, unpack(ids))
end

redis.pcall('XACK', stream, group, unpack(ids))
local n_removed = redis.call('XDEL', stream, unpack(ids))
local n_late = math.max(0, n_removed - n_held)

for i = 4 + 2 * n, #ARGV, 2 do
  next_in_line(ARGV[i + 1], ARGV[i])
end

redis.call('HINCRBY', counters, 'acked', n_removed)
redis.call('HINCRBY', counters, 'removed', n_removed)
if n_late > 0 then
  redis.call('HINCRBY', counters, 'late', n_late)
end
return {n_removed - n_late, n_late, n - n_removed}
