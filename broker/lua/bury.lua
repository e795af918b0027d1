-- Moves an entry to the dead letters, with its original fields.
--
-- KEYS     1–9 work  10 dead (see dead.lua)  11 suspects  12 counters  13 unique key of the message (optional)
-- ARGV     group, consumer, delivery count, entry id, message id,
--          ms to keep dead letters, how many to keep, how many bytes to keep, key ("" = none; see work.lua),
--          the message to store instead of the entry's ("" = the entry's),
--          then names and values of the dead letter's own fields
-- Returns  {"BURIED", id of the dead letter}, or why nothing was written: {"FENCED"} (the caller does not hold the
--          entry), {"GONE"} (the entry was removed)
--
-- Only the first 2,000 fields of an entry are kept, because Lua cannot pass more arguments to XADD. The dead letter's
-- field left_out is the number of other fields.
-- Works when the server's memory is full, because it adds little besides the moved fields, and Redis lets a script
-- finish if its first write needs no memory.

local MOST_FIELDS = 2000
local stream, dead, suspects, counters, unique = KEYS[1], KEYS[10], KEYS[11], KEYS[12], KEYS[13]
local group, consumer, deliveries, id, message_id = ARGV[1], ARGV[2], tonumber(ARGV[3]), ARGV[4], ARGV[5]
local keep_ms, keep_n, keep_bytes, key = tonumber(ARGV[6]), tonumber(ARGV[7]), tonumber(ARGV[8]), ARGV[9]
local payload = ARGV[10]

redis.call('ZREM', work.delayed, '')
local entry = redis.call('XRANGE', stream, id, id)[1]
if not entry then
  redis.pcall('XACK', stream, group, id)
  leave_work(key, id)
  return {'GONE'}
end
local pending = redis.pcall('XPENDING', stream, group, id, id, 1)
if pending.err or not pending[1] or pending[1][2] ~= consumer or pending[1][4] ~= deliveries then
  redis.pcall('HINCRBY', counters, 'fenced', 1)
  return {'FENCED'}
end

local letter = {unpack(ARGV, 11)}
local n_fields = #entry[2] / 2
for i = 1, 2 * math.min(n_fields, MOST_FIELDS), 2 do
  letter[#letter + 1] = 'entry:' .. entry[2][i]
  letter[#letter + 1] = entry[2][i] == 'message' and payload ~= '' and payload or entry[2][i + 1]
end
if n_fields > MOST_FIELDS then
  letter[#letter + 1] = 'left_out'
  letter[#letter + 1] = tostring(n_fields - MOST_FIELDS)
end
local dead_letter_id = add_dead_letter(dead, counters, letter, server_ms(), keep_ms, keep_n, keep_bytes)

redis.call('XACK', stream, group, id)
redis.pcall('HINCRBY', counters, 'removed', redis.call('XDEL', stream, id))
redis.pcall('HDEL', suspects, id)
if unique then
  unlock(unique, message_id, id)
end
if key ~= '' then
  leave_work(key, id)
end
return {'BURIED', dead_letter_id}
