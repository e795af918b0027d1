-- Ends the claim of a claimant.
--
-- KEYS     1 meta
-- ARGV     claimant
-- Returns  1 if the claim was ended, 0 if the claimant had no claim

if redis.call('HGET', KEYS[1], 'claim') ~= ARGV[1] then
  return 0
end
redis.call('HDEL', KEYS[1], 'claim', 'claim_until_ms')
return 1
