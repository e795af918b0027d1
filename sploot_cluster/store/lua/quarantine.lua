-- Quarantines an item whose model or dimension is not the pet's, so that it is counted and can be found. If the
-- quarantine is full, the arrival is only counted as overflowed.
--
-- KEYS     all keys of the pet
-- ARGV     born, item, facts (JSON), maximum size of the quarantine
-- Returns  1 if it is quarantined, 0 if the pet was recreated, has the item, or its quarantine is full,
--          {"DAMAGED", key, expected, found} if the pet is damaged

local damaged, born, _, _, _, _, n_quarantined = look()
if damaged then
  return damaged
end
local meta, item = KEYS[1], ARGV[2]
if born ~= ARGV[1] or redis.call('HEXISTS', KEYS[3], item) == 1 then
  return 0
end
if redis.call('HEXISTS', KEYS[13], item) == 0 then
  if tonumber(n_quarantined) >= tonumber(ARGV[4]) then
    redis.call('HINCRBY', meta, 'n_overflowed', 1)
    return 0
  end
  redis.call('HINCRBY', meta, 'ingested', 1)
  redis.call('HINCRBY', meta, 'n_quarantined', 1)
end
redis.call('HSET', KEYS[13], item, ARGV[3])
return 1
