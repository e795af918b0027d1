-- Reads a pet at one moment: all of it, or what is new to a reader who knows an earlier state.
--
-- KEYS     1 meta  2 media  3 vectors  4 labels  5 standings  6 clusters  7 aliases  8 ledger
-- ARGV     born, commit, revision, n_media, n_corrections, last_medium   of the known state; "", "", 0, 0, 0, "" = none
--          with_vectors   1 or 0
-- Returns  {} for a pet that has nothing, else
--          1 meta           field, value, …
--          2 from_row       columns below begin at this row
--          3 media
--          4 vectors        "" without vectors
--          5 labels_from    labels and standings begin at this row: 0 when rows that exist were relabelled
--          6 labels
--          7 standings
--          8 clusters       id, card, …   false when they are as known, and so are the aliases
--          9 aliases        id, id, …
--         10 from_correction
--         11 ledger         corrections from there on
--
-- The known state counts only if it is an ancestor of what is stored. A later revision with the same last medium in the
-- same row is taken for one: that fails after a failover that lost writes, and for a pet deleted and begun anew.

local known_revision, known_rows, known_corrections = tonumber(ARGV[3]), tonumber(ARGV[4]), tonumber(ARGV[5])

local meta = redis.call('HGETALL', KEYS[1])
if #meta == 0 then
  return {}
end
local field = {}
for i = 1, #meta, 2 do
  field[meta[i]] = meta[i + 1]
end
local revision = tonumber(field.revision)
local is_ancestor = field.born == ARGV[1] and (
  field.commit == ARGV[2]
  or revision > known_revision and (known_rows == 0 or redis.call('LINDEX', KEYS[2], known_rows - 1) == ARGV[6]))
if not is_ancestor then
  known_revision, known_rows, known_corrections = 0, 0, 0
end

local labels_from = known_rows
if tonumber(field.relabelled_at or '0') > known_revision then
  labels_from = 0
end
local clusters, aliases = false, false
if not is_ancestor or tonumber(field.recarded_at or '0') > known_revision then
  clusters, aliases = redis.call('HGETALL', KEYS[6]), redis.call('HGETALL', KEYS[7])
end
local vectors = ''
if ARGV[7] == '1' then
  vectors = redis.call('GETRANGE', KEYS[3], known_rows * tonumber(field.dim or '0') * 4, -1)
end
return {
  meta,
  known_rows,
  redis.call('LRANGE', KEYS[2], known_rows, -1),
  vectors,
  labels_from,
  redis.call('GETRANGE', KEYS[4], labels_from * 4, -1),
  redis.call('GETRANGE', KEYS[5], labels_from, -1),
  clusters,
  aliases,
  known_corrections,
  redis.call('LRANGE', KEYS[8], known_corrections, -1),
}
