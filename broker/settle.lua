-- Acknowledges messages that are done, and removes their entries.
--
-- KEYS     1 stream  2 suspects  3 counters
-- ARGV     group, consumer, then per entry: id, delivery count
-- Returns  {acked, late, gone}   late: done here, though somebody else held it meanwhile; gone: removed already
--
-- Success is believed whoever holds the entry now: the job is done. The commands that a full server refuses come last
-- and may fail: a full server must be able to acknowledge.

local stream, suspects, counters = KEYS[1], KEYS[2], KEYS[3]
local group, consumer = ARGV[1], ARGV[2]

local ids, n_held = {}, 0
for i = 3, #ARGV, 2 do
  local id = ARGV[i]
  ids[#ids + 1] = id
  local pending = redis.pcall('XPENDING', stream, group, id, id, 1)
  if not pending.err and pending[1] and pending[1][2] == consumer and pending[1][4] == tonumber(ARGV[i + 1]) then
    n_held = n_held + 1
  end
  if ARGV[i + 1] ~= '1' then
    redis.call('HDEL', suspects, id)
  end
end

redis.pcall('XACK', stream, group, unpack(ids))
local n_removed = redis.call('XDEL', stream, unpack(ids))
local n_late = math.max(0, n_removed - n_held)

redis.pcall('HINCRBY', counters, 'acked', n_removed)
if n_late > 0 then
  redis.pcall('HINCRBY', counters, 'late', n_late)
end
return {n_removed - n_late, n_late, #ids - n_removed}
