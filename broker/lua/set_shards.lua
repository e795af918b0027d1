-- Sets the number of shards of a queue.
--
-- KEYS     1 shards
-- ARGV     the number of shards that new messages are added to
-- Returns  the new value: "<number> <largest number ever>". Shards that are no longer used may hold messages, so that
--          the second number never falls.

local before = redis.call('GET', KEYS[1])
local most = math.max(tonumber(ARGV[1]), before and tonumber(string.match(before, '(%d+)$')) or 1)
local value = string.format('%d %d', ARGV[1], most)
redis.call('SET', KEYS[1], value)
return value
