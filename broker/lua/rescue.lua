-- Requeues entries that an operator chose. Consumers can take them at once. They keep their position in the stream, and
-- the delivery that this ends counts.
--
-- KEYS     1 stream  2 timer  3 counters  4 suspects
-- ARGV     group, consumer of handed-back entries, then per entry: id, its holder ("" = none: an orphan),
--          delivery count
-- Returns  {number of entries requeued, number of ghosts removed}
--
-- Entries whose holder or delivery count has changed are skipped. Each entry is claimed before anything is removed, so
-- that it is in a pending list after every step.

local stream, timer, counters, suspects = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local group, handed_back = ARGV[1], ARGV[2]

local last_delivered = last_delivered_id(stream, group) or '0-0'

local n_back, n_ghosts = 0, 0
for i = 3, #ARGV, 3 do
  local id, holder, deliveries = ARGV[i], ARGV[i + 1], tonumber(ARGV[i + 2])
  local pending = redis.pcall('XPENDING', stream, group, id, id, 1)
  local held = not pending.err and pending[1]
  local exists = #redis.call('XRANGE', stream, id, id) > 0
  if holder == '' then
    -- check with a range query that an orphan was delivered, because ids cannot be compared as text
    if exists and not held and #redis.call('XRANGE', stream, id, last_delivered, 'COUNT', 1) > 0 then
      redis.call('XCLAIM', stream, group, handed_back, 0, id, 'FORCE', 'RETRYCOUNT', 1, 'JUSTID')
      n_back = n_back + 1
    end
  elseif held and held[2] == holder and held[4] == deliveries then
    if exists then
      redis.call('XCLAIM', stream, group, handed_back, 0, id, 'RETRYCOUNT', deliveries, 'JUSTID')
      n_back = n_back + 1
    else
      redis.call('XACK', stream, group, id)
      redis.pcall('HDEL', suspects, id)
      n_ghosts = n_ghosts + 1
    end
  end
end
if n_back > 0 then
  -- with pcall, because a server whose memory is full refuses these two writes, and the entries must still be requeued
  redis.pcall('HINCRBY', counters, 'rescued', n_back)
  redis.pcall('XADD', timer, 'MAXLEN', 16, '*', 'rescued', n_back)
end
if n_ghosts > 0 then
  redis.pcall('HINCRBY', counters, 'ghosts', n_ghosts)
end
return {n_back, n_ghosts}
