-- Copies a range of rows of a pet, without some of them, and appends them to the rows that were copied before.
--
-- KEYS     1 meta  2 media  3 vectors, of the pet; 4 media  5 rows  6 vectors, of the copy
-- ARGV     born            of the pet that is copied; its rows never change
--          first, n_rows   the range
--          n_copied        number of rows that the copy has
--          for_ms          the copy expires after this time
--          then the rows of the range to leave out
-- Returns  the number of rows that the copy has now; also when a lost reply made the client send the same call again,
--          -1 if the pet was replaced or deleted, its vectors were moved out of Redis, or the copy expired

local first, n_rows, n_copied = tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4])
if redis.call('HGET', KEYS[1], 'born') ~= ARGV[1] then
  return -1
end
local is_left_out = {}
for i = 6, #ARGV do
  is_left_out[ARGV[i] - first + 1] = true
end
local n_after, n_there = n_copied + n_rows - (#ARGV - 5), redis.call('LLEN', KEYS[4])
if n_there == n_after then
  return n_after
end
if n_there ~= n_copied then
  return -1
end
local media = redis.call('LRANGE', KEYS[2], first, first + n_rows - 1)
local vectors = redis.call('LRANGE', KEYS[3], first, first + n_rows - 1)
if #vectors ~= #media then
  return -1
end
local kept, rows, kept_vectors = {}, {}, {}
for i, item in ipairs(media) do
  if not is_left_out[i] then
    rows[#rows + 1], rows[#rows + 2] = item, n_copied + #kept
    kept[#kept + 1] = item
    kept_vectors[#kept] = vectors[i]
  end
end
redis.call('RPUSH', KEYS[4], unpack(kept))
redis.call('HSET', KEYS[5], unpack(rows))
redis.call('RPUSH', KEYS[6], unpack(kept_vectors))
for i = 4, 6 do
  redis.call('PEXPIRE', KEYS[i], ARGV[5])
end
return n_after
