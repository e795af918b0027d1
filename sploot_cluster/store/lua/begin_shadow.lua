-- Opens the shadow of a pet: a second space, for vectors of a candidate model.
--
-- KEYS     all keys of the pet
-- ARGV     born, then the fields of the shadow
-- Returns  1 if the shadow was opened, 0 if the pet was recreated or has a shadow already,
--          {"DAMAGED", key, expected, found} if the pet is damaged

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
