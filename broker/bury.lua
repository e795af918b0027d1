-- Moves an entry to the dead letters, with the fields it came with.
--
-- KEYS     1 stream  2 dead  3 suspects  4 counters  5 unique key of the message (optional)
-- ARGV     group, consumer, delivery count, entry id, message id,
--          ms to keep dead letters, how many to keep, then names and values of the letter's own fields
-- Returns  {"BURIED", id of the letter}, or why nothing was written: {"FENCED"}, {"GONE"}

local stream, dead, suspects, counters, unique = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5]
local group, consumer, deliveries, id, message_id = ARGV[1], ARGV[2], tonumber(ARGV[3]), ARGV[4], ARGV[5]
local keep_ms, keep_n = tonumber(ARGV[6]), tonumber(ARGV[7])

local entry = redis.call('XRANGE', stream, id, id)[1]
if not entry then
  redis.pcall('XACK', stream, group, id)
  return {'GONE'}
end
local pending = redis.pcall('XPENDING', stream, group, id, id, 1)
if pending.err or not pending[1] or pending[1][2] ~= consumer or pending[1][4] ~= deliveries then
  redis.call('HINCRBY', counters, 'fenced', 1)
  return {'FENCED'}
end

local letter = {unpack(ARGV, 8)}
for i = 1, #entry[2], 2 do
  letter[#letter + 1] = 'entry:' .. entry[2][i]
  letter[#letter + 1] = entry[2][i + 1]
end
local letter_id = redis.call('XADD', dead, '*', unpack(letter))
redis.call('XTRIM', dead, 'MAXLEN', '~', keep_n)
local time = redis.call('TIME')
redis.call('XTRIM', dead, 'MINID', '~', string.format('%d', math.max(0, time[1] * 1000 - keep_ms)))

redis.call('XACK', stream, group, id)
redis.call('XDEL', stream, id)
redis.call('HDEL', suspects, id)
if unique and redis.call('GET', unique) == message_id then
  redis.call('DEL', unique)
end
redis.call('HINCRBY', counters, 'dead', 1)
return {'BURIED', letter_id}
