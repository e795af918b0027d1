-- Puts a vector of another model into the space that is open for it; a medium that is there stays as it is.
--
-- KEYS     1 shadow  2 shadow_vectors
-- ARGV     model, medium, vector
-- Returns  1 when it is there now, 0 when no space is open for this model

if redis.call('HGET', KEYS[1], 'model') ~= ARGV[1] then
  return 0
end
redis.call('HSETNX', KEYS[2], ARGV[2], ARGV[3])
return 1
