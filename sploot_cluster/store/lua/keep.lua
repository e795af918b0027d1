-- Stores the spanning tree of a pet, unless the pet was recreated or has a larger tree.
--
-- KEYS     1 meta  2 tree
-- ARGV     born, n, body
-- Returns  1 if it was stored, else 0

local born, n, body = ARGV[1], tonumber(ARGV[2]), ARGV[3]
if redis.call('HGET', KEYS[1], 'born') ~= born then
  return 0
end
local kept = redis.call('HMGET', KEYS[2], 'born', 'n')
if kept[1] == born and tonumber(kept[2]) > n then
  return 0
end
redis.call('HSET', KEYS[2], 'born', born, 'n', n, 'body', body)
return 1
