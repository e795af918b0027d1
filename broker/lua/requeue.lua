-- Requeues dead letters: adds each original entry again, at the end of the stream or of its key's line, and takes the
-- lock of its unique key. If another message with the unique key is waiting, the dead letter is not requeued.
--
-- KEYS     1–9 work  10 dead, also of {dead}:mistakes (dead.lua)  11 counters
--          12… the unique key of each dead letter that has one
-- ARGV     ms after which unique locks end, then per dead letter: its id, number of its unique key in KEYS (0 = none)
-- Returns  per dead letter: the id of its new entry, "in-line" if it waits in line for the limits of its key,
--          "key-held" if it was not requeued, or "" if it does not exist

local stream, dead, counters, lock_ms = KEYS[1], KEYS[10], KEYS[11], ARGV[1]

local n, n_stale, entries = 0, 0, {}
for i = 2, #ARGV, 2 do
  local id, lock = ARGV[i], tonumber(ARGV[i + 1])
  local letter = redis.call('XRANGE', dead, id, id)[1]
  entries[#entries + 1] = ''
  if letter then
    local entry, key, limits, message_id, payload = {}, nil, '', nil, nil
    for j = 1, #letter[2], 2 do
      local name, value = letter[2][j], letter[2][j + 1]
      if name == 'ordering_key' then
        key = value
      elseif name == 'concurrency_key' then
        key = '\1' .. value
      elseif name == 'rate_key' then
        key = '\2' .. value
      elseif name == 'limits' then
        limits = value
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
    if not key and limits ~= '' then -- a message with limits but without a key has a priority
      key = '\4'
    end
    local holder, is_stale = false, false
    if lock > 0 and message_id then
      holder, is_stale = holder_of(KEYS[lock])
    end
    n_stale = n_stale + (is_stale and 1 or 0)
    local where
    if holder and holder ~= message_id then
      entries[#entries] = 'key-held'
    elseif key and payload then
      where = arrive(key, key .. '\0' .. id, 0, payload, limits)
    else
      where = redis.call('XADD', stream, '*', unpack(entry))
    end
    if where then
      entries[#entries] = string.find(where, '\0', 1, true) and 'in-line' or where
      if lock > 0 and message_id then
        take_lock(KEYS[lock], message_id, lock_ms, where)
      end
      redis.call('XDEL', dead, id)
      redis.pcall('ZREM', dead .. ':mistakes', id)
      n = n + 1
    end
  end
end
if n > 0 then
  redis.pcall('HINCRBY', counters, 'requeued', n)
end
if n_stale > 0 then
  redis.pcall('HINCRBY', counters, 'stale_locks', n_stale)
end
return entries
