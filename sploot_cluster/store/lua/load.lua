-- Reads a pet as a consistent snapshot: all of it, or what is new to a reader that knows an earlier state.
--
-- KEYS     all keys of the pet
-- ARGV     born, commit, revision, n_media, n_corrections, last_item   of the known state; "", "", 0, 0, 0, "" = none
--          most_rows, most_bytes   return the rows that are new only if they are no more than this, and their vectors
--                             have no more bytes; most_bytes 0 = return no vectors
--          unchecked          1: if the known state is the newest, do not check the pet, because a commit follows
-- Returns  1 if the known state is the newest, {} for a pet without data,
--          {"DAMAGED", key, expected, found} for a damaged one, known or not (but see unchecked), else
--          1 meta           field, value, …
--          2 from_row       the new rows begin here
--          3 are_rows_here  1: the next three are the new rows; 0: they are empty, and the rows can be read later in pages:
--                           rows never change while the pet has the same born; 2: the same, but the vectors, which the
--                           caller wants, are in the cold store, at the place that meta names
--          4 media
--          5 vectors
--          6 occurred_at
--          7 labels_from    labels and origins begin at this row: 0 if existing rows were relabelled
--          8 labels
--          9 origins
--         10 clusters       id, card, …   if neither clusters nor aliases changed, both are false
--         11 aliases        id, id, …
--         12 from_correction
--         13 ledger         corrections from that one on
--
-- The known state is used only if it is an ancestor of the stored one: the pet has the same born, a later revision, and
-- the last item of the known state in the same row. After a failover that lost writes, and for a recreated pet, it is
-- not an ancestor.

if ARGV[9] == '1' then
  local stored = redis.call('HMGET', KEYS[1], 'born', 'commit')
  if stored[1] == ARGV[1] and stored[2] == ARGV[2] then
    return 1
  end
end
local damaged, born, commit = look()
if damaged then
  return damaged
end
if not born then
  return {}
end
if born == ARGV[1] and commit == ARGV[2] then
  return 1
end
local known_revision, known_rows, known_corrections = tonumber(ARGV[3]), tonumber(ARGV[4]), tonumber(ARGV[5])

local meta, field = redis.call('HGETALL', KEYS[1]), {}
for i = 1, #meta, 2 do
  field[meta[i]] = meta[i + 1]
end
local revision = tonumber(field.revision)
local is_ancestor = born == ARGV[1] and revision > known_revision
  and (known_rows == 0 or redis.call('LINDEX', KEYS[2], known_rows - 1) == ARGV[6])
if not is_ancestor then
  known_revision, known_rows, known_corrections = 0, 0, 0
end

local labels_from = known_rows
if tonumber(field.relabelled_at) > known_revision then
  labels_from = 0
end
local clusters, aliases = false, false
if not is_ancestor or tonumber(field.recarded_at) > known_revision then
  clusters, aliases = redis.call('HGETALL', KEYS[7]), redis.call('HGETALL', KEYS[8])
end
local n_new, most_bytes = tonumber(field.n_media) - known_rows, tonumber(ARGV[8])
local are_rows_here, media, vectors, occurred_at = 0, {}, {}, ''
if is_cold and most_bytes > 0 and n_new > 0 then
  are_rows_here = 2
elseif n_new <= tonumber(ARGV[7]) and (most_bytes == 0 or n_new * 4 * tonumber(field.dim or '0') <= most_bytes) then
  are_rows_here = 1
  media = redis.call('LRANGE', KEYS[2], known_rows, -1)
  occurred_at = redis.call('GETRANGE', KEYS[18], known_rows * 8, -1)
  if most_bytes > 0 then
    vectors = redis.call('LRANGE', KEYS[4], known_rows, -1)
  end
end
return {
  meta,
  known_rows,
  are_rows_here,
  media,
  vectors,
  occurred_at,
  labels_from,
  redis.call('GETRANGE', KEYS[5], labels_from * 4, -1),
  redis.call('GETRANGE', KEYS[6], labels_from, -1),
  clusters,
  aliases,
  known_corrections,
  redis.call('LRANGE', KEYS[9], known_corrections, -1),
}
