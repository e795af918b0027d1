-- Takes down a medium whose vector is of another space than the pet's, so that it is counted and can be found.
--
-- KEYS     1 meta  2 rows  3 quarantine
-- ARGV     born, medium, facts (JSON), most
-- Returns  1 when it is taken down, 0 when the pet is another one by now, has the medium, or has taken down too many

local meta, medium = KEYS[1], ARGV[2]
if redis.call('HGET', meta, 'born') ~= ARGV[1] or redis.call('HEXISTS', KEYS[2], medium) == 1 then
  return 0
end
if redis.call('HEXISTS', KEYS[3], medium) == 0 then
  local n_quarantined = redis.call('HLEN', KEYS[3])
  if n_quarantined >= tonumber(ARGV[4]) then
    return 0
  end
  if redis.call('HEXISTS', meta, 'ingested') == 0 then
    redis.call('HSET', meta, 'ingested', redis.call('HGET', meta, 'n_media') + n_quarantined)
  end
  redis.call('HINCRBY', meta, 'ingested', 1)
end
redis.call('HSET', KEYS[3], medium, ARGV[3])
return 1
