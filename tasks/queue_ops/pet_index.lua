-- Indexes a page of waiting entries by pet, and removes a page of index rows whose entries no longer wait.
--
-- KEYS     1 stream
--          2 index: zset entry id, scored by pet; and since the first page the row '-', scored -1
--          3 hash: up_to (last entry indexed), rank (position of the cleanup), seen (last entry of the stream at seen_at),
--          ripe (last entry that has waited long enough)
-- ARGV     maximum number of entries, minimum wait in ms
-- Returns  {indexed, removed}; if fewer than the maximum number are indexed, no other entry has waited long enough
--
-- Producers in any language write plain entries, so the pet is known only after reading an entry. This script reads each
-- entry at most once, and none that is delivered quickly; a call on an idle queue costs two commands.

local stream, index, progress = KEYS[1], KEYS[2], KEYS[3]
local n, waited = tonumber(ARGV[1]), tonumber(ARGV[2])

local first = redis.call('XRANGE', stream, '-', '+', 'COUNT', 1)[1]
if not first then
  redis.call('DEL', index, progress)
  return {0, 0}
end

-- Returns whether one id is lower than the other. Compares digits, because Lua's numbers cannot hold every id exactly.
local function is_less(one, other)
  local ms, number = string.match(one, '^(%d+)-(%d+)$')
  local other_ms, other_number = string.match(other, '^(%d+)-(%d+)$')
  local function less(a, b)
    return #a < #b or (#a == #b and a < b)
  end
  return less(ms, other_ms) or (ms == other_ms and less(number, other_number))
end

local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local last = redis.call('XREVRANGE', stream, '+', '-', 'COUNT', 1)[1][1]
local up_to, seen, seen_at, ripe = unpack(redis.call('HMGET', progress, 'up_to', 'seen', 'seen_at', 'ripe'))
if up_to and is_less(last, up_to) then -- the stream was created again, and its ids start lower
  up_to, seen, ripe = nil, nil, nil
end
if up_to and not redis.call('ZSCORE', index, '-') then -- the index was deleted, so index everything again
  up_to = nil
end

-- After a first write that needs no memory, a full server accepts the following writes, so that operators can delete
-- pets to free memory.
redis.call('ZREM', index, '')

-- The end of the range in which every entry has waited long enough. It is found by id or, if a producer chose ids ahead
-- of the clock, it is the last entry that was seen that long ago.
local to = waited == 0 and '+' or string.format('%.0f', now - waited)
if waited > 0 and is_less(to .. '-0', last) and tonumber(string.match(last, '^%d+')) > now then
  local since = seen and now - tonumber(seen_at) or -1
  if since < 0 or since >= waited then
    ripe = since >= waited and seen or ripe
    redis.call('HSET', progress, 'seen', last, 'seen_at', string.format('%.0f', now), 'ripe', ripe or '0-0')
  end
  if ripe and is_less(to .. '-0', ripe) then
    to = ripe
  end
end
local is_end = up_to == '18446744073709551615-18446744073709551615'
local entries = is_end and {} or redis.call('XRANGE', stream, up_to and '(' .. up_to or '-', to, 'COUNT', n)

local notes = {}
for _, entry in ipairs(entries) do
  local fields, pet = entry[2], nil
  for i = 1, #fields, 2 do
    if fields[i] == 'pet_id' then
      pet = string.match(fields[i + 1], '^%d+$')
    elseif fields[i] == 'message' then
      -- inside a JSON text the quote of a key has no backslash before it, so no value can look like this key
      pet = string.match(fields[i + 1], '"pet_id":%s*(%d+)')
    end
    if pet then
      break
    end
  end
  if pet and #pet <= 19 then -- an int64 has at most 19 digits
    notes[#notes + 1] = pet
    notes[#notes + 1] = entry[1]
  end
end
if #notes > 0 then
  redis.call('ZADD', index, unpack(notes))
end
if #entries > 0 then
  redis.call('ZADD', index, -1, '-')
  redis.call('HSET', progress, 'up_to', entries[#entries][1])
end

-- Cleanup checks two rows for each one indexed, so the index cannot outgrow the waiting entries. Rows before the first
-- entry of the stream have ended; gaps in the middle are found by searches.
local rank = tonumber(redis.call('HGET', progress, 'rank') or 0)
local n_looks = 2 * math.max(#entries, 100)
local looked = redis.call('ZRANGE', index, rank, rank + n_looks - 1)
local ended = {}
for _, id in ipairs(looked) do
  if id ~= '-' and is_less(id, first[1]) then
    ended[#ended + 1] = id
  end
end
if #ended > 0 then
  redis.call('ZREM', index, unpack(ended))
end
rank = #looked == n_looks and rank + #looked - #ended or 0 -- start from the beginning after the last row
redis.call('HSET', progress, 'rank', rank)
return {#entries, #ended}
