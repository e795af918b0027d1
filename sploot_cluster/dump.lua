-- Reads all of a pet at one moment.
--
-- KEYS     1 meta  2 media  3 vectors  4 labels  5 standings  6 clusters  7 aliases  8 ledger  9 arrived
--          10 overwritten  11 history  12 quarantine  13 shadow  14 shadow_vectors
-- Returns  {} for a pet that has nothing, else their values in this order: hashes as field, value, …, strings whole

local meta = redis.call('HGETALL', KEYS[1])
if #meta == 0 then
  return {}
end
return {
  meta,
  redis.call('LRANGE', KEYS[2], 0, -1),
  redis.call('GET', KEYS[3]) or '',
  redis.call('GET', KEYS[4]) or '',
  redis.call('GET', KEYS[5]) or '',
  redis.call('HGETALL', KEYS[6]),
  redis.call('HGETALL', KEYS[7]),
  redis.call('LRANGE', KEYS[8], 0, -1),
  redis.call('GET', KEYS[9]) or '',
  redis.call('XRANGE', KEYS[10], '-', '+'),
  redis.call('XRANGE', KEYS[11], '-', '+'),
  redis.call('HGETALL', KEYS[12]),
  redis.call('HGETALL', KEYS[13]),
  redis.call('HGETALL', KEYS[14]),
}
