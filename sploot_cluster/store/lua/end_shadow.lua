-- Closes the space candidate a pet's own, with all that is in it.
--
-- KEYS     all of the pet
-- Returns  1 when it was open, 0 when none was, {"DAMAGED", key, expected, found} when the pet is not whole

local damaged, _, _, _, _, _, _, _, n_shadow = look()
if damaged then
  return damaged
end
if not n_shadow then
  return 0
end
redis.call('HDEL', KEYS[1], 'n_shadow')
redis.call('DEL', KEYS[15], KEYS[16])
return 1
