-- Returns the entries that the caller owns but does not hold, because the reply that delivered them was lost.
--
-- KEYS     1 stream  2 counters
-- ARGV     group, consumer, minimum idle time in ms, maximum number of entries,
--          largest entry in bytes (only the head of a larger one is returned), approximate limit on all bytes,
--          then the ids that the caller holds
-- Returns  a list of {id, delivery count, fields, size of the entry if it was cut, otherwise 0}
--
-- Crash counts and idle times do not change, because the server delivered these entries only once.

local stream, counters = KEYS[1], KEYS[2]
local group, me, min_idle, room = ARGV[1], ARGV[2], ARGV[3], tonumber(ARGV[4])
local longest, budget, n_bytes = tonumber(ARGV[5]), tonumber(ARGV[6]), 0
local held = {}
for i = 7, #ARGV do
  held[ARGV[i]] = true
end

local found, from = {}, '-'
while #found < room and n_bytes < budget do
  local pending = redis.pcall('XPENDING', stream, group, 'IDLE', min_idle, from, '+', 500, me)
  if pending.err or #pending == 0 then
    break
  end
  for _, one in ipairs(pending) do
    local id = one[1]
    if not held[id] and #found < room and n_bytes < budget then
      local entry = redis.call('XRANGE', stream, id, id)[1]
      if entry then
        local fields, kept, cut = head_of(entry[2], longest)
        n_bytes = n_bytes + kept
        found[#found + 1] = {id, one[4], fields, cut}
      else
        redis.call('XACK', stream, group, id)
      end
    end
  end
  from = '(' .. pending[#pending][1]
end
if #found > 0 then
  redis.pcall('HINCRBY', counters, 'redelivered', #found)
end
return found
