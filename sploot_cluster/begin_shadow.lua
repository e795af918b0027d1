-- Opens a second space beside a pet's own, for vectors of another model.
--
-- KEYS     1 meta  2 shadow
-- ARGV     born, then the fields of the shadow
-- Returns  1 when it is open, 0 when the pet is another one by now, or has a shadow already

if redis.call('HGET', KEYS[1], 'born') ~= ARGV[1] or redis.call('EXISTS', KEYS[2]) == 1 then
  return 0
end
redis.call('HSET', KEYS[2], unpack(ARGV, 2))
return 1
