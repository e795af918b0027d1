-- Hands back entries that were not started, or that their batch did not mark as done. Consumers can take them at once.
-- They keep their position in the stream. The delivery of an entry that was not started does not count.
--
-- KEYS     1 stream  2 timer  3 counters
-- ARGV     group, consumer, consumer of handed-back entries, 1: their batch did not mark them as done, then per entry:
--          id, delivery count
-- Returns  number of entries that were handed back. Other consumers already hold the rest

local stream, timer, counters = KEYS[1], KEYS[2], KEYS[3]
local group, me, handed_back, is_undone = ARGV[1], ARGV[2], ARGV[3], ARGV[4] == '1'

local n = 0
for i = 5, #ARGV, 2 do
  local id, deliveries = ARGV[i], tonumber(ARGV[i + 1])
  local pending = redis.pcall('XPENDING', stream, group, id, id, 1)
  if not pending.err and pending[1] and pending[1][2] == me and pending[1][4] == deliveries then
    local counted = is_undone and deliveries or deliveries - 1
    redis.call('XCLAIM', stream, group, handed_back, 0, id, 'RETRYCOUNT', counted, 'JUSTID')
    n = n + 1
  end
end
if n > 0 then
  if is_undone then
    redis.pcall('HINCRBY', counters, 'unbatched', n)
  else
    redis.pcall('HINCRBY', counters, 'handed_back', n)
  end
  redis.pcall('XADD', timer, 'MAXLEN', 16, '*', 'handed_back', n)
end
return n
