-- Ends a claim, if it is still the claimant's.
--
-- KEYS     1 meta
-- ARGV     claimant
-- Returns  1 when it was ended, 0 when there was none or somebody else's

if redis.call('HGET', KEYS[1], 'claim') ~= ARGV[1] then
  return 0
end
redis.call('HDEL', KEYS[1], 'claim', 'claim_until_ms')
return 1
