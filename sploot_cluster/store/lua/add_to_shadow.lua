-- Puts a vector of another model into the space that is open for it; an item that is there stays as it is. One that the
-- pet does not have is quarantined too, so that it is counted and can be found while only that space has it.
--
-- KEYS     all of the pet
-- ARGV     born, model, item, vector, facts of the quarantine (JSON)
-- Returns  1 when it is there now, 0 when the pet is another one by now, or no space is open for this model,
--          {"DAMAGED", key, expected, found} when the pet is not whole

local damaged, born = look()
if damaged then
  return damaged
end
local expected, model, item, vector, facts = unpack(ARGV)
if born ~= expected or redis.call('HGET', KEYS[15], 'model') ~= model then
  return 0
end
redis.call('HINCRBY', KEYS[1], 'n_shadow', redis.call('HSETNX', KEYS[16], item, vector))
-- however many there are: each has a vector candidate the pet, so its name is the smaller part
if redis.call('HEXISTS', KEYS[3], item) == 0 and redis.call('HSET', KEYS[13], item, facts) == 1 then
  redis.call('HINCRBY', KEYS[1], 'ingested', 1)
  redis.call('HINCRBY', KEYS[1], 'n_quarantined', 1)
end
return 1
