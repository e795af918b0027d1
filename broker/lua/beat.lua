-- Writes a consumer's heartbeat.
--
-- KEYS     1 stream  2 consumers
-- ARGV     group, consumer, lease in ms, 1: create the group if it does not exist (optional)
-- Returns  1 if the consumer's lease had not lapsed, or 0 if others may have taken over its entries
--
-- A new group starts at 0, because every entry in the stream must run, even if it was delivered before. A consumer that
-- leave.lua has declared dead (heartbeat 0) stays dead: this heartbeat was in transit when the process died.

local stream, consumers = KEYS[1], KEYS[2]
local group, me, lease = ARGV[1], ARGV[2], tonumber(ARGV[3])

if ARGV[4] then
  redis.call('ZREM', consumers, '')
  local made = redis.pcall('XGROUP', 'CREATE', stream, group, '0', 'MKSTREAM')
  if made.err and not string.find(made.err, 'BUSYGROUP', 1, true) then
    return made
  end
end
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local last = redis.call('ZSCORE', consumers, me)
if last == '0' then
  return 0
end
local said = redis.pcall('ZADD', consumers, now, me)
if type(said) == 'table' and said.err then
  -- A server whose memory is full lets a script finish if its first write needs no memory. Heartbeats must work then.
  redis.call('ZREM', consumers, me)
  redis.call('ZADD', consumers, now, me)
end
return last and tonumber(last) >= now - lease and 1 or 0
