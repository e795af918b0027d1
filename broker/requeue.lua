-- Puts dead letters back to work: each becomes the entry that it was, at the end of the stream, or of its key's line.
--
-- KEYS     1–7 work  8 dead  9 counters
-- ARGV     ids of letters
-- Returns  per letter the id of its entry, "in-line" for one that waits for another of its ordering key, or "" where the
--          letter is gone

local stream, dead, counters = KEYS[1], KEYS[8], KEYS[9]

local n, entries = 0, {}
for _, id in ipairs(ARGV) do
  local letter = redis.call('XRANGE', dead, id, id)[1]
  entries[#entries + 1] = ''
  if letter then
    local entry, key, payload = {}, nil, nil
    for i = 1, #letter[2], 2 do
      if letter[2][i] == 'ordering_key' then
        key = letter[2][i + 1]
      elseif letter[2][i] == 'entry:message' then
        payload = letter[2][i + 1]
      end
      if string.sub(letter[2][i], 1, 6) == 'entry:' then
        entry[#entry + 1] = string.sub(letter[2][i], 7)
        entry[#entry + 1] = letter[2][i + 1]
      end
    end
    if key and payload and is_at_work(key) then
      stand_in_line(key, 0, payload)
      entries[#entries] = 'in-line'
    else
      local entry_id = redis.call('XADD', stream, '*', unpack(entry))
      if key then
        note_where(key, nil, entry_id)
      end
      entries[#entries] = entry_id
    end
    redis.call('XDEL', dead, id)
    n = n + 1
  end
end
if n > 0 then
  redis.call('HINCRBY', counters, 'requeued', n)
end
return entries
