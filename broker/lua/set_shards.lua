-- Sets a queue's number of shards.
--
-- KEYS     1 shards
-- ARGV     the number of shards to which new messages are added
-- Returns  the new value, "<number> <largest number ever>". The second number never decreases, because shards to which
--          no messages are added may still hold messages.

local before = redis.call('GET', KEYS[1])
local most = math.max(tonumber(ARGV[1]), before and tonumber(string.match(before, '(%d+)$')) or 1)
local value = string.format('%d %d', ARGV[1], most)
redis.call('SET', KEYS[1], value)
return value
