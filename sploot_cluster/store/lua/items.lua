-- Reads a range of rows of a pet, without their vectors.
--
-- KEYS     all keys of the pet
-- ARGV     first row, number of rows
-- Returns  {} for a pet without data, {"DAMAGED", key, expected, found} for a damaged one, else
--          {born, revision, n_media, media, labels, origins, occurred_at}

local damaged, born, _, revision, n_media = look()
if damaged or not born then
  return damaged or {}
end
local first, last = tonumber(ARGV[1]), tonumber(ARGV[1]) + tonumber(ARGV[2]) - 1
return {
  born,
  revision,
  n_media,
  redis.call('LRANGE', KEYS[2], first, last),
  redis.call('GETRANGE', KEYS[5], 4 * first, 4 * last + 3),
  redis.call('GETRANGE', KEYS[6], first, last),
  redis.call('GETRANGE', KEYS[18], 8 * first, 8 * last + 7),
}
