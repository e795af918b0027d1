-- Sets the next time at which the objects of a pet are checked, or removes the pet from the set, unless another process
-- has set a time since.
--
-- KEYS     1 the set of pets that have objects in the cold store
-- ARGV     pet, due_ms   the time that the caller read
--          again_ms      the next time; 0 = remove the pet
-- Returns  1 if the set was changed, else 0

if tonumber(redis.call('ZSCORE', KEYS[1], ARGV[1]) or '-1') ~= tonumber(ARGV[2]) then
  return 0
end
if ARGV[3] == '0' then
  return redis.call('ZREM', KEYS[1], ARGV[1])
end
redis.call('ZADD', KEYS[1], ARGV[3], ARGV[1])
return 1
