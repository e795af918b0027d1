-- Reads a page of entries for operators, limited in bytes, with only the heads of large entries. Writes nothing.
--
-- KEYS     1 stream
-- ARGV     XRANGE or XREVRANGE, start, end, maximum number of entries,
--          largest entry in bytes (only the head of a larger one is returned), approximate limit on all bytes
-- Returns  a list of {id, fields, size of the entry if it was cut, otherwise 0}; empty if there are no more entries

local command, start, stop = ARGV[1], ARGV[2], ARGV[3]
local count, longest, budget = tonumber(ARGV[4]), tonumber(ARGV[5]), tonumber(ARGV[6])

local found, n_bytes = {}, 0
while start and #found < count and n_bytes < budget do
  local entry = redis.call(command, KEYS[1], start, stop, 'COUNT', 1)[1]
  if not entry then
    break
  end
  local fields, kept, cut = head_of(entry[2], longest)
  found[#found + 1] = {entry[1], fields, cut}
  n_bytes = n_bytes + kept
  start = behind(entry[1])
  if command == 'XREVRANGE' then
    start = '(' .. entry[1]
  end
end
return found
