-- Returns the item counts of a pet, after checking its keys.
--
-- KEYS     all keys of the pet
-- Returns  {} for a pet without data, {"DAMAGED", key, expected, found} for a damaged one, else
--          {ingested, n_clustered, n_noise, n_quarantined, n_dismissed, n_overflowed, n_media, dim, cold}; dim may be
--          false, and cold is false unless the vectors are in the cold store

local damaged, born = look()
if damaged or not born then
  return damaged or {}
end
return redis.call('HMGET', KEYS[1], 'ingested', 'n_clustered', 'n_noise', 'n_quarantined', 'n_dismissed', 'n_overflowed',
  'n_media', 'dim', 'cold')
