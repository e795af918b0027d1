-- Keeps a recluster that was computed and not committed, if the pet is still what it was computed on.
--
-- KEYS     1 meta  2 preview
-- ARGV     commit, body, for_ms
-- Returns  1 when it was kept, 0 when the pet has moved on

if redis.call('HGET', KEYS[1], 'commit') ~= ARGV[1] then
  return 0
end
redis.call('SET', KEYS[2], ARGV[2], 'PX', ARGV[3])
return 1
