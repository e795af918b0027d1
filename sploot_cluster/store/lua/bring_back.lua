-- Puts the vectors of a cold pet, which were written to a temporary key, back in their place.
--
-- KEYS     1 meta  2 vectors  3 the temporary key
-- ARGV     place   where the vectors are in the cold store, as in meta
-- Returns  1 if they were put back,
--          0 if the pet is not cold at that place any more, or the temporary key has expired

local place, n_media = unpack(redis.call('HMGET', KEYS[1], 'cold', 'n_media'))
if place ~= ARGV[1] or redis.call('LLEN', KEYS[3]) ~= tonumber(n_media) then
  return 0
end
redis.call('RENAME', KEYS[3], KEYS[2])
redis.call('PERSIST', KEYS[2])
redis.call('HDEL', KEYS[1], 'cold', 'idle')
return 1
