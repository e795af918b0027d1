-- Reads how long a stream's oldest entry has waited for a reader. Writes nothing.
--
-- KEYS     1 stream
-- ARGV     group, name of the consumer that owns handed-back entries
-- Returns  the greater of the oldest undelivered entry's age and a handed-back entry's idle time, in ms, or 0 if no
--          entry waits. An entry whose id is ahead of the clock counts as old, because the id does not show its age.

local stream, group = KEYS[1], ARGV[1]
local waited = 0
local handed_back = redis.pcall('XPENDING', stream, group, '-', '+', 1, ARGV[2])
if handed_back[1] then -- a missing group means that no process has consumed the shard yet
  waited = handed_back[1][3]
end
local last = last_delivered_id(stream, group)
local from = last and behind(last) or (not last and '-')
local first = from and redis.call('XRANGE', stream, from, '+', 'COUNT', 1)[1]
if first then
  local time = redis.call('TIME')
  local age = time[1] * 1000 + math.floor(time[2] / 1000) - tonumber(string.match(first[1], '^%d+'))
  waited = math.max(waited, age >= 0 and age or 2 ^ 31)
end
return waited
