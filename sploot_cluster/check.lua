-- Counts the media of a pet, if it is whole.
--
-- KEYS     all of the pet
-- Returns  {} for a pet that has nothing, {"DAMAGED", key, expected, found} for one that is not whole, else
--          {ingested, n_clustered, n_noise, n_quarantined, n_dismissed, n_overflowed}

local stored, damaged = look()
if damaged or not stored.commit then
  return damaged or {}
end
return {
  stored.ingested, stored.n_clustered, stored.n_noise, stored.n_quarantined, stored.n_dismissed,
  stored.n_overflowed or '0',
}
