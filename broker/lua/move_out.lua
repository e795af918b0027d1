-- Removes entries that were added to another shard.
--
-- KEYS     1 stream  2 counters
-- ARGV     group, then the ids of the entries
-- Returns  the number of entries that were removed

local ids = {unpack(ARGV, 2)}
redis.pcall('XACK', KEYS[1], ARGV[1], unpack(ids))
local n = redis.call('XDEL', KEYS[1], unpack(ids))
redis.pcall('HINCRBY', KEYS[2], 'moved', n)
redis.pcall('HINCRBY', KEYS[2], 'removed', n)
return n
