-- Replaces a whole pet, atomically: for an import, a deletion of items, or a switch of the model.
--
-- KEYS     all keys of the pet; then, if the new values are written, the keys that hold them, in the same order:
--          they are renamed. Some of them may be missing
-- ARGV     born, commit   of the state to replace; "", "" for a pet without data
--          new_commit     the name of the new state, which is also among the values to write
--          claimant, claim_ms   claim the pet under this name after a conflict ("" = do not), for this long
--          begun_at, n_vectors, n_quarantined   expected state of the shadow and the quarantine, which change without a
--                                               commit: when the shadow was opened ("" = none is open), and the sizes
--          n_leaving      "": the shadow is replaced, too; else the shadow stays, without this number of items
--          the items that leave the shadow
--          then commands, if the new values are not written yet, each as the number of its arguments, its name, the number of its key, and its arguments
-- Returns  {"OK", revision}        written; also when a lost reply made the client send the same call again
--          {"CONFLICT", revision}  the pet, its shadow or its quarantine is not at that state, or values that were written
--                                  already have expired
--          {"DAMAGED", key, expected, found}   the pet is damaged

local meta = KEYS[1]
local claimant, claim_ms = ARGV[4], tonumber(ARGV[5])
local damaged, born, commit, revision, _, _, n_quarantined, _, n_shadow, _, claim, claim_until_ms = look()
if commit == ARGV[3] then
  return {'OK', tonumber(revision)}
end
if damaged then
  return damaged
end
if (born or '') ~= ARGV[1] or (commit or '') ~= ARGV[2] then
  local time = redis.call('TIME')
  local now_ms = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
  if claimant ~= '' and born and (not claim or tonumber(claim_until_ms) < now_ms) then
    redis.call('HSET', meta, 'claim', claimant, 'claim_until_ms', string.format('%.0f', now_ms + claim_ms))
  end
  return {'CONFLICT', tonumber(revision or '0')}
end
if born and ((redis.call('HGET', KEYS[15], 'begun_at') or '') ~= ARGV[6]
    or (n_shadow or '0') ~= ARGV[7] or n_quarantined ~= ARGV[8]) then
  return {'CONFLICT', tonumber(revision)}
end
local staged = N_KEYS
if #KEYS > staged then
  local n = tonumber(redis.call('HGET', KEYS[staged + 1], 'n_media') or '-1')
  if n ~= redis.call('LLEN', KEYS[staged + 2]) or n ~= redis.call('HLEN', KEYS[staged + 3])
      or n ~= redis.call('LLEN', KEYS[staged + 4]) then
    return {'CONFLICT', tonumber(revision or '0')}
  end
end
-- a server that is out of memory refuses this first write, before anything is deleted
redis.call('HSET', meta, 'commit', ARGV[2])
local shadow_stays, n_leaving = ARGV[9] ~= '', tonumber(ARGV[9]) or 0
-- UNLINK and not DEL, because another thread frees large values
for i = 1, N_KEYS do
  if not (shadow_stays and (i == 15 or i == 16)) then
    redis.call('UNLINK', KEYS[i])
  end
end
for i = N_KEYS + 1, #KEYS do
  if redis.call('EXISTS', KEYS[i]) == 1 then
    redis.call('RENAME', KEYS[i], KEYS[i - N_KEYS])
    redis.call('PERSIST', KEYS[i - N_KEYS])
  end
end
if shadow_stays and n_shadow then
  for i = 10, 9 + n_leaving do
    redis.call('HDEL', KEYS[16], ARGV[i])
  end
  redis.call('HSET', meta, 'n_shadow', redis.call('HLEN', KEYS[16]))
end
local at = 10 + n_leaving
while at <= #ARGV do
  local length = tonumber(ARGV[at])
  redis.call(ARGV[at + 1], KEYS[tonumber(ARGV[at + 2])], unpack(ARGV, at + 3, at + 2 + length))
  at = at + 3 + length
end
return {'OK', tonumber(redis.call('HGET', meta, 'revision'))}
