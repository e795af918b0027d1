-- Decides whether a message may start. Called only if the message was delivered before, if the lease may have lapsed,
-- or if the message has a unique key, a rate, a priority or an expiry time. Also called when a running message's
-- isolation ends.
--
-- KEYS     1–9 work  10 suspects  11 counters  12 unique key of the message (optional)
-- ARGV     group, consumer, delivery count, entry id, message id, 1: it runs in isolation, 1: it is already running,
--          key with a rate or a priority ("" = none) and its limits (see work.lua),
--          expiry time in ms (0 = never)
-- Returns  {RUN}, or {EXPIRED} if it did not start in time, each with the newest message that was coalesced onto it, if
--          any; or {LOST} if another consumer holds the entry now
--
-- A coalesced message is kept until the message that it was coalesced onto has ended, because it runs instead if that
-- message is skipped. The script records which consumer runs an entry that was delivered before, so that a crash counts
-- against messages that were running, and not against messages that only waited in the same process. A running message
-- that has ended or lost its entry when its isolation ends does not count as fenced.
--
-- A message that can expire is also recorded among the suspects when it starts, so that it does not expire if it is
-- delivered again after a crash.

local stream, suspects, counters, unique = KEYS[1], KEYS[10], KEYS[11], KEYS[12]
local group, consumer, deliveries, id, message_id = ARGV[1], ARGV[2], tonumber(ARGV[3]), ARGV[4], ARGV[5]
local is_running, key, limits, expires_at = ARGV[7] == '1', ARGV[8], ARGV[9], tonumber(ARGV[10])
local company = ARGV[6] == '1' and '' or ' alongside others'

-- A server whose memory is full lets a script finish if its first write needs no memory.
redis.pcall('HDEL', suspects, '')
local pending = redis.pcall('XPENDING', stream, group, id, id, 1)
if pending.err or not pending[1] or pending[1][2] ~= consumer or pending[1][4] ~= deliveries then
  if not is_running then
    redis.pcall('HINCRBY', counters, 'fenced', 1)
  end
  return {'LOST'}
end
local answer = 'RUN'
local noted = redis.pcall('HGET', suspects, id)
if expires_at > 0 and type(noted) ~= 'string' then
  if server_ms() >= expires_at and not is_running then
    answer = 'EXPIRED'
  else
    redis.pcall('HSET', suspects, id, 0)
  end
end
if deliveries > 1 and answer == 'RUN' then
  local charges = string.match(type(noted) == 'string' and noted or '0', '^%S+')
  redis.pcall('HSET', suspects, id, charges .. ' ' .. deliveries .. ' ' .. consumer .. company)
end
if key ~= '' and not is_running and answer == 'RUN' then
  start_work(key, id, limits)
end
if unique then
  if redis.call('GET', unique) == message_id then
    redis.call('DEL', unique)
  end
  local coalesced = in_holders('+' .. message_id)
  if coalesced then
    return {answer, coalesced}
  end
  redis.pcall('HDEL', work.holders, '=' .. message_id, '@' .. id)
end
return {answer}
