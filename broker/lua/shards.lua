-- Reads a queue's number of shards and, if it has ever had several, its live consumers. Writes nothing.
--
-- KEYS     1 shards  2 consumers (of shard 0, which every reader consumes)
-- ARGV     lease in ms
-- Returns  {the value that set_shards.lua wrote, or nothing, the name of each live consumer, …}

local value = redis.call('GET', KEYS[1])
if not value or string.match(value, '(%d+)$') == '1' then
  return {value}
end
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
return {value, unpack(redis.call('ZRANGEBYSCORE', KEYS[2], now - tonumber(ARGV[1]), '+inf'))}
