-- Deletes the shadow of a pet and its vectors.
--
-- KEYS     all keys of the pet
-- Returns  1 if a shadow was open, 0 if not, {"DAMAGED", key, expected, found} if the pet is damaged

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
