-- Puts dead letters back to work: each becomes the entry that it was, at the end of the stream.
--
-- KEYS     1 stream  2 dead  3 counters
-- ARGV     ids of letters
-- Returns  how many were put back; ids that are gone are passed over

local stream, dead, counters = KEYS[1], KEYS[2], KEYS[3]

local n = 0
for _, id in ipairs(ARGV) do
  local letter = redis.call('XRANGE', dead, id, id)[1]
  if letter then
    local entry = {}
    for i = 1, #letter[2], 2 do
      if string.sub(letter[2][i], 1, 6) == 'entry:' then
        entry[#entry + 1] = string.sub(letter[2][i], 7)
        entry[#entry + 1] = letter[2][i + 1]
      end
    end
    redis.call('XADD', stream, '*', unpack(entry))
    redis.call('XDEL', dead, id)
    n = n + 1
  end
end
if n > 0 then
  redis.call('HINCRBY', counters, 'requeued', n)
end
return n
