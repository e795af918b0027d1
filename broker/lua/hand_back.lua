-- Hands back entries that were not started. They can be taken at once, keep their place, and the delivery does not
-- count.
--
-- KEYS     1 stream  2 timer  3 counters
-- ARGV     group, consumer, consumer of handed-back entries, then per entry: id, delivery count
-- Returns  how many were handed back; other consumers hold the rest by now

local stream, timer, counters = KEYS[1], KEYS[2], KEYS[3]
local group, me, handed_back = ARGV[1], ARGV[2], ARGV[3]

local n = 0
for i = 4, #ARGV, 2 do
  local id, deliveries = ARGV[i], tonumber(ARGV[i + 1])
  local pending = redis.pcall('XPENDING', stream, group, id, id, 1)
  if not pending.err and pending[1] and pending[1][2] == me and pending[1][4] == deliveries then
    redis.call('XCLAIM', stream, group, handed_back, 0, id, 'RETRYCOUNT', deliveries - 1, 'JUSTID')
    n = n + 1
  end
end
if n > 0 then
  redis.call('HINCRBY', counters, 'handed_back', n)
  redis.call('XADD', timer, 'MAXLEN', 1, '*', 'handed_back', n)
end
return n
