-- Removes a consumer that holds no entries.
--
-- KEYS     1 stream  2 consumers
-- ARGV     group, consumer, 1: even if it is alive, lease in ms
-- Returns  {"RETIRED"}, or why it was not removed: {"HOLDS", number of entries that it holds},
--          {"ALIVE", age of its heartbeat in ms}

local stream, consumers = KEYS[1], KEYS[2]
local group, name, even_if_alive, lease = ARGV[1], ARGV[2], ARGV[3] == '1', tonumber(ARGV[4])

local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local beat = redis.call('ZSCORE', consumers, name)
if beat and not even_if_alive and now - tonumber(beat) <= lease then
  return {'ALIVE', math.max(0, now - tonumber(beat))}
end
local held = redis.pcall('XPENDING', stream, group, '-', '+', 1000, name)
if not held.err and #held > 0 then
  return {'HOLDS', #held}
end
redis.pcall('XGROUP', 'DELCONSUMER', stream, group, name)
redis.call('ZREM', consumers, name)
return {'RETIRED'}
