-- Takes down an item whose vector is of another space than the pet's, so that it is counted and can be found. One that
-- is too many is counted alone.
--
-- KEYS     all of the pet
-- ARGV     born, item, facts (JSON), most
-- Returns  1 when it is taken down, 0 when the pet is another one by now, has the item, or has taken down too many,
--          {"DAMAGED", key, expected, found} when the pet is not whole

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
