-- Reads all data of a pet, as a consistent snapshot.
--
-- KEYS     all keys of the pet
-- Returns  {} for a pet without data, {"DAMAGED", key, expected, found} for a damaged one, else the values of:
--          meta, media, vectors, labels, origins, clusters, aliases, ledger, arrived, overwritten, history, quarantine,
--          shadow, shadow_vectors, occurred_at; hashes as field, value, …

local damaged, born = look()
if damaged or not born then
  return damaged or {}
end
return {
  redis.call('HGETALL', KEYS[1]),
  redis.call('LRANGE', KEYS[2], 0, -1),
  redis.call('GET', KEYS[4]) or '',
  redis.call('GET', KEYS[5]) or '',
  redis.call('GET', KEYS[6]) or '',
  redis.call('HGETALL', KEYS[7]),
  redis.call('HGETALL', KEYS[8]),
  redis.call('LRANGE', KEYS[9], 0, -1),
  redis.call('GET', KEYS[11]) or '',
  redis.call('XRANGE', KEYS[12], '-', '+'),
  redis.call('XRANGE', KEYS[10], '-', '+'),
  redis.call('HGETALL', KEYS[13]),
  redis.call('HGETALL', KEYS[15]),
  redis.call('HGETALL', KEYS[16]),
  redis.call('GET', KEYS[18]) or '',
}
