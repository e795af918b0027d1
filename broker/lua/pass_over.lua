-- Turns a message at work into a dead letter, for an operator, so that the next message of its key gets its turn.
--
-- KEYS     1–9 work  10 dead (see dead.lua)  11 suspects  12 counters  13 unique key of the message (optional)
-- ARGV     group, consumer of handed-back entries, key (see work.lua), place of the message, message id,
--          1: even if it may be running, ms to keep dead letters, how many to keep, how many bytes to keep,
--          the message to store instead of the entry's ("" = the entry's),
--          then names and values of the dead letter's own fields
-- Returns  PASSED, or why nothing changed: MOVED (no message of the key is at work at this place), or RECEIVED (by a
--          worker, which may be running it)
--
-- A worker that is running the message continues. Its success has no effect, and its failure is not retried.

local stream, dead, suspects, counters, unique = KEYS[1], KEYS[10], KEYS[11], KEYS[12], KEYS[13]
local group, handed_back, key, where, message_id, is_forced = ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5], ARGV[6] == '1'
local keep_ms, keep_n, keep_bytes = tonumber(ARGV[7]), ARGV[8], tonumber(ARGV[9])

redis.call('ZREM', work.delayed, '')
local member = '\0' .. where
if not (redis.call('ZSCORE', work.at_work, key .. member) or redis.call('ZSCORE', work.at_work, unstarted(key) .. member))
  or not is_there(where) then
  return 'MOVED'
end
local letter, stored = {unpack(ARGV, 11)}, ARGV[10]
local payload = redis.call('HGET', work.messages, where)
if payload then
  letter[#letter + 1] = 'entry:message'
  letter[#letter + 1] = stored ~= '' and stored or payload
else
  local pending = redis.pcall('XPENDING', stream, group, where, where, 1)
  if not pending.err and pending[1] and pending[1][2] ~= handed_back and not is_forced then
    return 'RECEIVED'
  end
  local fields = redis.call('XRANGE', stream, where, where)[1][2]
  for i = 1, math.min(#fields, 4000), 2 do
    letter[#letter + 1] = 'entry:' .. fields[i]
    letter[#letter + 1] = fields[i] == 'message' and stored ~= '' and stored or fields[i + 1]
  end
end
add_dead_letter(dead, counters, letter, server_ms(), keep_ms, keep_n, keep_bytes)

if payload then
  redis.call('ZREM', work.delayed, where)
  redis.call('HDEL', work.messages, where)
else
  redis.pcall('XACK', stream, group, where)
  redis.pcall('HINCRBY', counters, 'removed', redis.call('XDEL', stream, where))
  redis.pcall('HDEL', suspects, where)
end
if unique then
  unlock(unique, message_id, where)
end
leave_work(key, where)
return 'PASSED'
