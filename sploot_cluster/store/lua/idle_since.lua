-- Returns when this script first saw a pet at its current revision. The first call for a revision writes this time to
-- meta, so it is deleted with the pet.
--
-- KEYS     1 meta
-- Returns  that time in milliseconds on the server's clock, and the current time; 0 and 0 for a pet without vectors in
--          Redis

local revision, n_media, cold, idle = unpack(redis.call('HMGET', KEYS[1], 'revision', 'n_media', 'cold', 'idle'))
if not revision or not tonumber(n_media) or tonumber(n_media) == 0 or cold then
  return {'0', '0'}
end
local time = redis.call('TIME')
local now_ms = string.format('%.0f', tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000))
local seen, since_ms = string.match(idle or '', '^(%d+) (%d+)$')
if seen ~= revision then
  redis.call('HSET', KEYS[1], 'idle', revision .. ' ' .. now_ms)
  since_ms = now_ms
end
return {since_ms, now_ms}
