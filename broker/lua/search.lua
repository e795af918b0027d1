-- Searches a page of a queue's messages for strings. Writes nothing.
--
-- KEYS     1–9 work
-- ARGV     where to search: line, delayed or stream; cursor ("" at first), approximate number of messages to read,
--          largest entry in bytes (larger ones are left out), approximate number of bytes to read, strings…
-- Returns  {next cursor ("" = the pass is complete), place, fields, …} of the messages that contain one of the strings,
--          or of all messages if no string is given

local cursor, count, longest, budget = ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4]), tonumber(ARGV[5])
local texts = {unpack(ARGV, 6)}

local function contains_one(value)
  for _, text in ipairs(texts) do
    if string.find(value, text, 1, true) then
      return true
    end
  end
  return #texts == 0
end

local reply = {''}
local function look_at(place, fields)
  local n_bytes, is_match = 0, false
  for i = 1, #fields do
    n_bytes = n_bytes + #fields[i]
    is_match = is_match or (i % 2 == 0 and contains_one(fields[i]))
  end
  if is_match and n_bytes <= longest then
    reply[#reply + 1] = place
    reply[#reply + 1] = fields
  end
  return n_bytes
end

if ARGV[1] == 'stream' then
  local from, n, n_bytes = cursor == '' and '-' or cursor, 0, 0
  while from do
    -- read a few at a time, because their sizes are unknown until they are read
    local entries = redis.call('XRANGE', work.stream, from, '+', 'COUNT', 10)
    for _, entry in ipairs(entries) do
      n_bytes = n_bytes + look_at(entry[1], entry[2])
    end
    n = n + #entries
    from = #entries == 10 and behind(entries[10][1])
    if from and (n >= count or n_bytes >= budget) then
      reply[1] = from
      break
    end
  end
else
  local is_line = ARGV[1] == 'line'
  local key = is_line and work.in_line or work.messages
  local found = redis.call('HSCAN', key, cursor == '' and '0' or cursor, 'COUNT', count)
  for i = 1, #found[2], 2 do
    local payload = found[2][i + 1]
    look_at(found[2][i], {'message', is_line and string.match(payload, '^%d+ (.*)$') or payload})
  end
  reply[1] = found[1] == '0' and '' or found[1]
end
return reply
