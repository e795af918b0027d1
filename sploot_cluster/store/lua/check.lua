-- Counts the media of a pet, if it is whole.
--
-- KEYS     all of the pet
-- Returns  {} for a pet that has nothing, {"DAMAGED", key, expected, found} for one that is not whole, else
--          {ingested, n_clustered, n_noise, n_quarantined, n_dismissed, n_overflowed}

local damaged, born = look()
if damaged or not born then
  return damaged or {}
end
return redis.call('HMGET', KEYS[1], 'ingested', 'n_clustered', 'n_noise', 'n_quarantined', 'n_dismissed', 'n_overflowed')
