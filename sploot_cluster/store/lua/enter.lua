-- Adds a pet to the set of pets that have objects in the cold store, scored by the time at which these are checked.
--
-- KEYS     1 the set
-- ARGV     pet, due_ms
-- Returns  1

-- first a write that needs no memory, because moves free it when Redis is full
redis.call('ZREM', KEYS[1], ARGV[1])
redis.call('ZADD', KEYS[1], ARGV[2], ARGV[1])
return 1
