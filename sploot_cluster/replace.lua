-- Puts a whole pet in the place of what is stored of it, or nothing: an import, a deletion of media, a change of model.
--
-- KEYS     1 meta  2… all others of the pet
-- ARGV     born, commit   of the state that is replaced; "", "" for a pet that has nothing
--          new_commit     the name of this one, as it stands among what is written
--          claimant, claim_ms   who gets the right of way after a conflict ("" = nobody), and for how long
--          shadow, shadow_vectors, quarantine   the numbers of these keys; what arrives there makes no commit
--          begun_at, n_vectors, n_quarantined   what is replaced of them: when the shadow was opened ("" = none is open),
--                                               and how many media are in each
--          then commands, each as the number of its arguments, its name, the number of its key, and the arguments
-- Returns  {"OK", revision}        written; also when a lost reply made the client send the same again
--          {"CONFLICT", revision}  the pet, or what is beside it, is not at that state

local meta = KEYS[1]
local claimant, claim_ms = ARGV[4], tonumber(ARGV[5])
local stored = redis.call('HMGET', meta, 'born', 'commit', 'revision', 'claim', 'claim_until_ms')
if stored[2] == ARGV[3] then
  return {'OK', tonumber(stored[3])}
end
if (stored[1] or '') ~= ARGV[1] or (stored[2] or '') ~= ARGV[2] then
  local time = redis.call('TIME')
  local now_ms = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
  if claimant ~= '' and stored[1] and (not stored[4] or tonumber(stored[5]) < now_ms) then
    redis.call('HSET', meta, 'claim', claimant, 'claim_until_ms', string.format('%.0f', now_ms + claim_ms))
  end
  return {'CONFLICT', tonumber(stored[3] or '0')}
end
local shadow, shadow_vectors, quarantine = KEYS[tonumber(ARGV[6])], KEYS[tonumber(ARGV[7])], KEYS[tonumber(ARGV[8])]
if stored[1] and ((redis.call('HGET', shadow, 'begun_at') or '') ~= ARGV[9]
    or redis.call('HLEN', shadow_vectors) ~= tonumber(ARGV[10])
    or redis.call('HLEN', quarantine) ~= tonumber(ARGV[11])) then
  return {'CONFLICT', tonumber(stored[3])}
end
-- the first write is one that a server without memory refuses, before anything is gone
redis.call('HSET', meta, 'commit', ARGV[2])
redis.call('DEL', unpack(KEYS))
local at = 12
while at <= #ARGV do
  local length = tonumber(ARGV[at])
  redis.call(ARGV[at + 1], KEYS[tonumber(ARGV[at + 2])], unpack(ARGV, at + 3, at + 2 + length))
  at = at + 3 + length
end
return {'OK', tonumber(redis.call('HGET', meta, 'revision'))}
