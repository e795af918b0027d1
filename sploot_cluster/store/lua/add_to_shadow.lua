-- Adds a vector to the open shadow of its model, unless the shadow already has a vector of this item. An item that the
-- pet does not have is quarantined too, so that it is counted and can be found while only the shadow has it.
--
-- KEYS     all keys of the pet
-- ARGV     born, model, item, vector, quarantine facts of the item (JSON)
-- Returns  1 if the shadow has the item now, 0 if the pet was recreated or no shadow of this model is open,
--          {"DAMAGED", key, expected, found} if the pet is damaged

local damaged, born = look()
if damaged then
  return damaged
end
local expected, model, item, vector, facts = unpack(ARGV)
if born ~= expected or redis.call('HGET', KEYS[15], 'model') ~= model then
  return 0
end
redis.call('HINCRBY', KEYS[1], 'n_shadow', redis.call('HSETNX', KEYS[16], item, vector))
-- no limit on the quarantine here: the id is small compared to the vector that the shadow stores anyway
if redis.call('HEXISTS', KEYS[3], item) == 0 and redis.call('HSET', KEYS[13], item, facts) == 1 then
  redis.call('HINCRBY', KEYS[1], 'ingested', 1)
  redis.call('HINCRBY', KEYS[1], 'n_quarantined', 1)
end
return 1
