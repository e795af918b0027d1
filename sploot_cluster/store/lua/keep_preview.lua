-- Stores the preview of a recluster, if the pet is still at the state that it was computed on.
--
-- KEYS     1 meta  2 preview
-- ARGV     commit, body, for_ms
-- Returns  1 if it was stored, 0 if the pet has changed

if redis.call('HGET', KEYS[1], 'commit') ~= ARGV[1] then
  return 0
end
redis.call('SET', KEYS[2], ARGV[2], 'PX', ARGV[3])
return 1
