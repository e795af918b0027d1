-- Gives the caller the entries that it owns and does not hold: their reply was lost on the way.
--
-- KEYS     1 stream  2 counters
-- ARGV     group, consumer, idle for at least so many ms, at most so many, then the ids it holds
-- Returns  a list of {id, delivery count, fields}
--
-- Nothing is charged and idle times stay: to the server these entries were delivered once.

local stream, counters = KEYS[1], KEYS[2]
local group, me, min_idle, room = ARGV[1], ARGV[2], ARGV[3], tonumber(ARGV[4])
local held = {}
for i = 5, #ARGV do
  held[ARGV[i]] = true
end

local found, from = {}, '-'
while #found < room do
  local pending = redis.pcall('XPENDING', stream, group, 'IDLE', min_idle, from, '+', 500, me)
  if pending.err or #pending == 0 then
    break
  end
  for _, one in ipairs(pending) do
    local id = one[1]
    if not held[id] and #found < room then
      local entry = redis.call('XRANGE', stream, id, id)[1]
      if entry then
        found[#found + 1] = {id, one[4], entry[2]}
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
