-- Commits one change of a pet, atomically.
--
-- KEYS     all keys of the pet
-- ARGV     born, commit, revision   the state that the change was decided on; "", "", 0 for a pet without data
--          new_born, new_commit     name for the pet, "" unless this is its first commit; name of this commit
--          claimant, claim_ms       claim the pet under this name after a conflict ("" = do not), for this long
--          format, model, dim, next_cluster, n_at_recluster, noise_arrivals   for meta; model and dim "" = keep
--          relabels                 1: labels and origins are those of all rows, some of which changed; 0: those of the
--                                   arrivals only
--          labels, origins
--          arrived, occurred_at     of the arrivals
--          was, kept                record of the labels that this commit overwrites, "" = none; number of records to
--                                   keep
--          n_clustered, n_noise, n_dismissed   numbers of items after this commit
--          correction, name         JSON for the ledger, or ""; the name of the pet after it, "" = none
--          kind, by, summary        of the history entry; kind "" = none
--          then six lists, each as its length and then its items:
--          media of the arrivals; their vectors; clusters to set (id, card, …); clusters to remove; aliases to set; aliases to remove
-- Returns  {"OK", revision, born}      written; also when a lost reply made the client send the same commit again
--          {"CONFLICT", revision}      the pet is not at that state
--          {"CLAIMED", revision, ms}   the pet is at that state, but another change has claimed it for this long
--          {"COLD", revision, place}   the change has arrivals, and the vectors of the pet are in the cold store
--          {"UNCONSERVED", revision, ingested, n_quarantined}   some items would be missing from the counts
--          {"DAMAGED", key, expected, found}   the pet is damaged, perhaps only since the change was decided
--
-- It is atomic: a server that is out of memory refuses the first write.

local HISTORY_LENGTH = 10000
-- unpack() puts every item on Lua's stack, which holds 8,000
local ITEMS_PER_CALL = 5000

local taken = 0
local function take()
  taken = taken + 1
  return ARGV[taken]
end

local function call_with_list(command, key)
  local length = tonumber(take())
  local last = taken + length
  while taken < last do
    local up_to = math.min(taken + ITEMS_PER_CALL, last)
    redis.call(command, key, unpack(ARGV, taken + 1, up_to))
    taken = up_to
  end
  return length
end

local meta = KEYS[1]
local decided_born, decided_commit, expected = take(), take(), tonumber(take())
local new_born, new_commit = take(), take()
local claimant, claim_ms = take(), tonumber(take())

local damaged, born, commit, revision, n_media, ingested, n_quarantined, n_overwritten, _, stored_dim, claim, claim_until_ms = look()
revision = tonumber(revision or '0')
if commit == new_commit then
  return {'OK', revision, born}
end
if damaged then
  return damaged
end

local function now_ms()
  local time = redis.call('TIME')
  return tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
end
local claimed_for_ms = 0
if claim and claim ~= claimant then
  claimed_for_ms = tonumber(claim_until_ms) - now_ms()
end
if (born or '') ~= decided_born or (commit or '') ~= decided_commit then
  if claimant ~= '' and claimed_for_ms <= 0 and born then
    redis.call('HSET', meta, 'claim', claimant, 'claim_until_ms', string.format('%.0f', now_ms() + claim_ms))
  end
  return {'CONFLICT', revision}
end
if claimed_for_ms > 0 then
  return {'CLAIMED', revision, claimed_for_ms}
end

local format, model, dim = take(), take(), take()
local next_cluster, n_at_recluster, noise_arrivals = take(), take(), take()
local relabels, labels, origins = take() == '1', take(), take()
local arrived, occurred_at, was, kept = take(), take(), take(), tonumber(take())
local n_clustered, n_noise, n_dismissed = tonumber(take()), tonumber(take()), tonumber(take())
local correction, name, kind, by, summary = take(), take(), take(), take(), take()

n_media, ingested, n_quarantined = tonumber(n_media or '0'), tonumber(ingested or '0'), tonumber(n_quarantined or '0')
local n_arriving, back = tonumber(ARGV[taken + 1]), {}
if is_cold and n_arriving > 0 then
  return {'COLD', revision, redis.call('HGET', meta, 'cold')}
end
if n_quarantined > 0 then
  for i = 1, n_arriving do
    if redis.call('HEXISTS', KEYS[13], ARGV[taken + 1 + i]) == 1 then
      back[#back + 1] = ARGV[taken + 1 + i]
    end
  end
end
ingested, n_quarantined = ingested + n_arriving - #back, n_quarantined - #back
if ingested ~= n_clustered + n_noise + n_dismissed + n_quarantined then
  return {'UNCONSERVED', expected, ingested, n_quarantined}
end
if n_arriving > 0 then
  -- the size of the first vector; the list of vectors and its length follow the media ids
  local n_bytes = #ARGV[taken + n_arriving + 3]
  if n_bytes ~= 4 * tonumber(dim ~= '' and dim or stored_dim) then
    return {'DAMAGED', meta .. ' dim', string.format('%d', n_bytes / 4), stored_dim or 'nothing'}
  end
end

revision = expected + 1
if expected == 0 then
  redis.call('HSET', meta, 'format', format, 'n_clusters', 0, 'n_aliases', 0, 'n_corrections', 0, 'n_history', 0,
    'n_overwritten', 0, 'n_overflowed', 0, 'relabelled_at', 0, 'recarded_at', 0, 'past_from', 0)
end

if expected == 0 then
  born = new_born
end
redis.call('HSET', meta, 'born', born, 'commit', new_commit, 'revision', revision, 'n_media', n_media + n_arriving,
  'next_cluster', next_cluster, 'n_at_recluster', n_at_recluster, 'noise_arrivals', noise_arrivals,
  'ingested', ingested, 'n_quarantined', n_quarantined, 'n_clustered', n_clustered, 'n_noise', n_noise, 'n_dismissed', n_dismissed)
for _, item in ipairs(back) do
  redis.call('HDEL', KEYS[13], item)
end
if claim then
  redis.call('HDEL', meta, 'claim', 'claim_until_ms')
end
if model ~= '' then
  redis.call('HSET', meta, 'model', model, 'dim', dim)
end
if was ~= '' then
  redis.call('XADD', KEYS[12], revision .. '-0', 'was', was)
  n_overwritten = tonumber(n_overwritten or '0')
  if n_overwritten + 1 > kept then
    local oldest = redis.call('XRANGE', KEYS[12], '-', '+', 'COUNT', 1)[1][1]
    redis.call('XDEL', KEYS[12], oldest)
    redis.call('HSET', meta, 'past_from', string.match(oldest, '%d+'))
  else
    redis.call('HSET', meta, 'n_overwritten', n_overwritten + 1)
  end
end
if arrived ~= '' then
  redis.call('APPEND', KEYS[11], arrived)
  redis.call('APPEND', KEYS[18], occurred_at)
end
if relabels then
  redis.call('SET', KEYS[5], labels)
  redis.call('SET', KEYS[6], origins)
  redis.call('HSET', meta, 'relabelled_at', revision)
elseif labels ~= '' then
  redis.call('APPEND', KEYS[5], labels)
  redis.call('APPEND', KEYS[6], origins)
end
if correction ~= '' then
  redis.call('HSET', meta, 'n_corrections', redis.call('RPUSH', KEYS[9], correction))
  if name ~= '' then
    redis.call('HSET', meta, 'name', name)
  else
    redis.call('HDEL', meta, 'name')
  end
end
if kind ~= '' then
  redis.call('XADD', KEYS[10], 'MAXLEN', '~', HISTORY_LENGTH, revision .. '-0',
    'kind', kind, 'by', by, 'at_ms', string.format('%.0f', now_ms()), 'summary', summary)
  redis.call('HSET', meta, 'n_history', redis.call('XLEN', KEYS[10]))
end

local first = taken + 2
local n_arrivals = call_with_list('RPUSH', KEYS[2])
for i = 0, n_arrivals - 1, ITEMS_PER_CALL / 2 do
  local rows = {}
  for j = i, math.min(i + ITEMS_PER_CALL / 2, n_arrivals) - 1 do
    rows[#rows + 1] = ARGV[first + j]
    rows[#rows + 1] = n_media + j
  end
  redis.call('HSET', KEYS[3], unpack(rows))
end
call_with_list('RPUSH', KEYS[4])

local n_cards = call_with_list('HSET', KEYS[7]) + call_with_list('HDEL', KEYS[7])
  + call_with_list('HSET', KEYS[8]) + call_with_list('HDEL', KEYS[8])
if n_cards > 0 then
  redis.call('HSET', meta, 'recarded_at', revision, 'n_clusters', redis.call('HLEN', KEYS[7]),
    'n_aliases', redis.call('HLEN', KEYS[8]))
end
return {'OK', revision, born}
