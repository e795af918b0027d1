-- The first part of every script that reads or writes a pet: checks the lengths of its keys. O(1).
--
-- KEYS of such a script begin with all keys of the pet, in the order of keys.PetKeys. tree and preview can be computed again
-- and are not checked. This part runs twice for every arrival, so it first only determines whether a key is damaged.

local FORMAT = '1'
local N_KEYS = 18
-- number of fields that meta always has
local N_ALWAYS = 22

-- whether the pet is whole with its vectors in the cold store; set by look()
local is_cold = false

local function is_dim(text)
  local dim = tonumber(text)
  return dim and dim > 0 and dim % 1 == 0
end

local function damage_of(meta)
  local call, always = redis.call, 'format born commit revision n_media next_cluster n_at_recluster noise_arrivals '
    .. 'ingested n_clustered n_noise n_dismissed n_quarantined n_overflowed n_clusters n_aliases n_corrections n_history '
    .. 'n_overwritten relabelled_at recarded_at past_from'
  if not next(meta) then
    local n_others = call('EXISTS', unpack(KEYS, 2, N_KEYS))
    return {'DAMAGED', KEYS[1], 'a hash next to ' .. n_others .. ' other keys of the pet', 'nothing'}
  end
  local names = meta.n_media == '0' and always or always .. ' model dim'
  for name in names:gmatch('%S+') do
    local expected = name == 'format' and FORMAT or 'a value'
    if not meta[name] or name == 'format' and meta.format ~= FORMAT then
      return {'DAMAGED', KEYS[1] .. ' ' .. name, expected, meta[name] or 'nothing'}
    end
    if name ~= 'born' and name ~= 'commit' and name ~= 'model' and not tonumber(meta[name]) then
      return {'DAMAGED', KEYS[1] .. ' ' .. name, 'a number', meta[name]}
    end
  end
  if meta.n_media ~= '0' and not is_dim(meta.dim) then
    return {'DAMAGED', KEYS[1] .. ' dim', 'a whole number from 1', meta.dim}
  end
  if not meta.n_shadow and call('EXISTS', KEYS[15], KEYS[16]) > 0 then
    return {'DAMAGED', KEYS[1] .. ' n_shadow', 'a value, as a shadow exists', 'nothing'}
  end
  for _, of in ipairs({
    {2, 'LLEN', 'items', meta.n_media}, {3, 'HLEN', 'fields', meta.n_media},
    {4, 'LLEN', 'items', meta.cold and 0 or meta.n_media}, {5, 'STRLEN', 'bytes', 4 * meta.n_media},
    {6, 'STRLEN', 'bytes', meta.n_media}, {7, 'HLEN', 'fields', meta.n_clusters},
    {8, 'HLEN', 'fields', meta.n_aliases}, {9, 'LLEN', 'items', meta.n_corrections},
    {10, 'XLEN', 'entries', meta.n_history}, {11, 'STRLEN', 'bytes', 4 * meta.n_media},
    {12, 'XLEN', 'entries', meta.n_overwritten}, {13, 'HLEN', 'fields', meta.n_quarantined},
    {18, 'STRLEN', 'bytes', 8 * meta.n_media}, {15, 'HLEN', 'fields', meta.n_shadow and 5 or 0}, {16, 'HLEN', 'fields', meta.n_shadow or 0},
  }) do
    local found = call(of[2], KEYS[of[1]])
    if found ~= tonumber(of[4]) then
      return {'DAMAGED', KEYS[of[1]], of[4] .. ' ' .. of[3], found .. ' ' .. of[3]}
    end
  end
  if meta.cold and call('HLEN', KEYS[1]) > N_ALWAYS then
    return nil
  end
  return {'DAMAGED', KEYS[1], 'at least ' .. N_ALWAYS .. ' fields', call('HLEN', KEYS[1]) .. ' fields'}
end

-- A cold pet fails the first check, because its vectors are missing, and is recognised as cold only then. So other pets
-- take no extra time.
--
-- Returns  nil and fields of meta, false for missing ones: born, commit, revision, n_media, ingested, n_quarantined,
--          n_overwritten, n_shadow, dim, claim, claim_until_ms; all are false for a pet without data
--          {"DAMAGED", key, expected, found}, and the same fields, for a damaged pet
local function look()
  local call, keys = redis.call, KEYS
  local born, commit, revision, n_media, ingested, n_quarantined, n_overwritten, n_shadow, dim, claim, claim_until_ms,
    model, n_clusters, n_aliases, n_corrections, n_history, format = unpack(call('HMGET', keys[1], 'born', 'commit',
    'revision', 'n_media', 'ingested', 'n_quarantined', 'n_overwritten', 'n_shadow', 'dim', 'claim', 'claim_until_ms',
    'model', 'n_clusters', 'n_aliases', 'n_corrections', 'n_history', 'format'))
  local n, damaged = tonumber(n_media), nil
  local n_fields = N_ALWAYS + (model and 1 or 0) + (dim and 1 or 0) + (n_shadow and 1 or 0) + (claim and 2 or 0)
  local is_whole = n and format == FORMAT and n_fields <= call('HLEN', keys[1]) and (n == 0 or model and is_dim(dim))
    and n == call('LLEN', keys[2]) and n == call('HLEN', keys[3]) and n == call('LLEN', keys[4])
    and 4 * n == call('STRLEN', keys[5]) and n == call('STRLEN', keys[6]) and 4 * n == call('STRLEN', keys[11])
    and 8 * n == call('STRLEN', keys[18])
    and tonumber(n_clusters) == call('HLEN', keys[7]) and tonumber(n_aliases) == call('HLEN', keys[8])
    and tonumber(n_corrections) == call('LLEN', keys[9]) and tonumber(n_history) == call('XLEN', keys[10])
    and tonumber(n_overwritten) == call('XLEN', keys[12]) and tonumber(n_quarantined) == call('HLEN', keys[13])
  if is_whole and n_shadow then
    is_whole = call('HLEN', keys[15]) == 5 and call('HLEN', keys[16]) == tonumber(n_shadow)
  elseif is_whole then
    is_whole = call('EXISTS', keys[15], keys[16]) == 0
  elseif not commit then
    is_whole = call('EXISTS', unpack(keys, 1, N_KEYS)) == 0
  end
  if not is_whole then
    local all, meta = call('HGETALL', keys[1]), {}
    for i = 1, #all, 2 do
      meta[all[i]] = all[i + 1]
    end
    damaged = damage_of(meta)
    is_cold = not damaged
  end
  return damaged, born, commit, revision, n_media, ingested, n_quarantined, n_overwritten, n_shadow, dim, claim,
    claim_until_ms
end

