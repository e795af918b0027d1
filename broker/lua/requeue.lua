-- Requeues dead letters: each becomes its original entry again, at the end of the stream or of its ordering key's line.
-- It takes the lock of its unique key if no other message with that key is waiting.
--
-- KEYS     1–8 work  9 dead  10 counters  11… the unique key of each dead letter that has one
-- ARGV     ms after which unique locks end, then per dead letter: its id, number of its unique key in KEYS (0 = none)
-- Returns  per dead letter the id of its new entry, "in-line" if it waits for another message with its ordering key, or
--          "" if the dead letter does not exist

local stream, dead, counters, lock_ms = KEYS[1], KEYS[9], KEYS[10], ARGV[1]

local n, entries = 0, {}
for i = 2, #ARGV, 2 do
  local id, lock = ARGV[i], tonumber(ARGV[i + 1])
  local letter = redis.call('XRANGE', dead, id, id)[1]
  entries[#entries + 1] = ''
  if letter then
    local entry, key, message_id, payload = {}, nil, nil, nil
    for j = 1, #letter[2], 2 do
      local name, value = letter[2][j], letter[2][j + 1]
      if name == 'ordering_key' then
        key = value
      elseif name == 'message_id' then
        message_id = value
      elseif name == 'entry:message' then
        payload = value
      end
      if string.sub(name, 1, 6) == 'entry:' then
        entry[#entry + 1] = string.sub(name, 7)
        entry[#entry + 1] = value
      end
    end
    local where
    if key and payload and is_at_work(key) then
      where = stand_in_line(key, 0, payload)
      entries[#entries] = 'in-line'
    else
      where = redis.call('XADD', stream, '*', unpack(entry))
      if key then
        note_where(key, nil, where)
      end
      entries[#entries] = where
    end
    if lock > 0 and message_id then
      take_lock(KEYS[lock], message_id, lock_ms, where)
    end
    redis.call('XDEL', dead, id)
    n = n + 1
  end
end
if n > 0 then
  redis.call('HINCRBY', counters, 'requeued', n)
end
return entries
