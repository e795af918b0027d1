-- Removes the vectors of a pet from Redis, after they were written to the cold store.
--
-- KEYS     all keys of the pet
-- ARGV     born, commit      of the state whose vectors were written
--          place             where they are, for meta
--          began_ms, most_ms   when the move began, on the server's clock, and how long it may take; if it takes longer,
--                            nothing will refer to its objects, so they can be deleted
-- Returns  1 if they were removed; also when a lost reply made the client send the same call again,
--          0 if the pet has changed, is cold already, or the move took too long,
--          {"DAMAGED", key, expected, found} if the pet is damaged

local damaged, born, commit = look()
if damaged then
  return damaged
end
if is_cold and redis.call('HGET', KEYS[1], 'cold') == ARGV[3] then
  return 1
end
local time = redis.call('TIME')
local now_ms = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
if is_cold or born ~= ARGV[1] or commit ~= ARGV[2] or now_ms - tonumber(ARGV[4]) > tonumber(ARGV[5]) then
  return 0
end
-- first a write that needs no memory, because Redis may be full
redis.call('UNLINK', KEYS[4])
redis.call('HSET', KEYS[1], 'cold', ARGV[3])
redis.call('HDEL', KEYS[1], 'idle')
return 1
