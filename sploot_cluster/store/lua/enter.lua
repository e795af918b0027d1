-- Enters a pet in the set of pets that have objects in the cold store, with the time at which these are looked at.
--
-- KEYS     1 the set
-- ARGV     pet, due_ms
-- Returns  1

-- first a write that needs no memory, because moves free it when Redis is full
redis.call('ZREM', KEYS[1], ARGV[1])
redis.call('ZADD', KEYS[1], ARGV[2], ARGV[1])
return 1
