-- Puts dead letters back to work: each becomes the entry that it was, at the end of the stream.
--
-- KEYS     1 stream  2 dead  3 counters
-- ARGV     ids of letters
-- Returns  per letter the id of its entry, or "" where the letter is gone

local stream, dead, counters = KEYS[1], KEYS[2], KEYS[3]

local n, entries = 0, {}
for _, id in ipairs(ARGV) do
  local letter = redis.call('XRANGE', dead, id, id)[1]
  entries[#entries + 1] = ''
  if letter then
    local entry = {}
    for i = 1, #letter[2], 2 do
      if string.sub(letter[2][i], 1, 6) == 'entry:' then
        entry[#entry + 1] = string.sub(letter[2][i], 7)
        entry[#entry + 1] = letter[2][i + 1]
      end
    end
    entries[#entries] = redis.call('XADD', stream, '*', unpack(entry))
    redis.call('XDEL', dead, id)
    n = n + 1
  end
end
if n > 0 then
  redis.call('HINCRBY', counters, 'requeued', n)
end
return entries
