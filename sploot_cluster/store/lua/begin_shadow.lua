-- Opens a second space candidate a pet's own, for vectors of another model.
--
-- KEYS     all of the pet
-- ARGV     born, then the fields of the shadow
-- Returns  1 when it is open, 0 when the pet is another one by now, or has a shadow already,
--          {"DAMAGED", key, expected, found} when the pet is not whole

local damaged, born, _, _, _, _, _, _, n_shadow = look()
if damaged then
  return damaged
end
if born ~= ARGV[1] or n_shadow then
  return 0
end
redis.call('HSET', KEYS[15], unpack(ARGV, 2))
redis.call('HSET', KEYS[1], 'n_shadow', 0)
return 1
