-- Opens every script that reads or writes a pet: whether its keys are whole, as far as their lengths show it. O(1).
--
-- KEYS of such a script are all keys of the pet, in the order of keys.PetKeys. tree and preview can be computed again
-- and are not looked at.

local FORMAT = '1'

-- what meta counts, the command that counts it, the number of its key, and how much of that one item takes
local LENGTHS = {
  {'n_media', 'LLEN', 2, 1}, {'n_media', 'HLEN', 3, 1}, {'n_media', 'STRLEN', 5, 4}, {'n_media', 'STRLEN', 6, 1},
  {'n_media', 'STRLEN', 11, 4}, {'n_clusters', 'HLEN', 7, 1}, {'n_aliases', 'HLEN', 8, 1},
  {'n_corrections', 'LLEN', 9, 1}, {'n_history', 'XLEN', 10, 1}, {'n_overwritten', 'XLEN', 12, 1},
  {'n_quarantined', 'HLEN', 13, 1},
}
local UNITS = {LLEN = 'items', HLEN = 'fields', STRLEN = 'bytes', XLEN = 'entries'}
local FIELDS = {
  'format', 'born', 'commit', 'revision', 'n_media', 'ingested', 'n_clustered', 'n_noise', 'n_dismissed',
  'n_quarantined', 'n_clusters', 'n_aliases', 'n_corrections', 'n_history', 'n_overwritten', 'next_cluster',
  'n_at_recluster', 'noise_arrivals',
  -- those that a pet can do without
  'model', 'dim', 'n_shadow', 'n_overflowed', 'relabelled_at', 'recarded_at', 'past_from', 'claim', 'claim_until_ms',
}
local N_REQUIRED, FIRST_NUMBER = 18, 4

-- Returns  what meta holds, by field; {} for a pet that has nothing
--          {"DAMAGED", key, expected, found}, or nil for a pet that is whole
local function look()
  local values, stored = redis.call('HMGET', KEYS[1], unpack(FIELDS)), {}
  for i, name in ipairs(FIELDS) do
    stored[name] = values[i] or nil
  end
  local function differ(number, name, expected, found)
    return stored, {'DAMAGED', name and KEYS[number] .. ' ' .. name or KEYS[number], expected, found}
  end

  if not next(stored) then
    local n_others = redis.call('EXISTS', unpack(KEYS, 2))
    if n_others > 0 then
      return differ(1, nil, 'a hash, as ' .. n_others .. ' other keys of the pet exist', 'nothing')
    end
    return stored
  end
  if stored.format and stored.format ~= FORMAT then
    return differ(1, 'format', FORMAT, stored.format)
  end
  for i = 1, N_REQUIRED do
    if not values[i] then
      return differ(1, FIELDS[i], 'a value', 'nothing')
    end
    if i >= FIRST_NUMBER and not tonumber(values[i]) then
      return differ(1, FIELDS[i], 'a number', values[i])
    end
  end
  for _, length in ipairs(LENGTHS) do
    local expected, found = stored[length[1]] * length[4], redis.call(length[2], KEYS[length[3]])
    if expected ~= found then
      return differ(length[3], nil, expected .. ' ' .. UNITS[length[2]], found .. ' ' .. UNITS[length[2]])
    end
  end
  if stored.n_media ~= '0' and not (stored.model and tonumber(stored.dim or '')) then
    return differ(1, stored.model and 'dim' or 'model', 'a value', 'nothing')
  end
  local n_bytes, expected = redis.call('STRLEN', KEYS[4]), 4 * stored.n_media * (stored.dim or 0)
  if n_bytes ~= expected then
    return differ(4, nil, expected .. ' bytes', n_bytes .. ' bytes')
  end
  local n_facts, n_beside = redis.call('HLEN', KEYS[15]), redis.call('HLEN', KEYS[16])
  if (stored.n_shadow and 5 or 0) ~= n_facts then
    return differ(15, nil, (stored.n_shadow and 5 or 0) .. ' fields', n_facts .. ' fields')
  end
  if n_beside ~= tonumber(stored.n_shadow or '0') then
    return differ(16, nil, (stored.n_shadow or '0') .. ' fields', n_beside .. ' fields')
  end
  return stored
end

