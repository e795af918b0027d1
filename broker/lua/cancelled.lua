-- Reads a page of marks of cancelled messages that workers have received. Deletes marks whose entry no longer exists.
--
-- KEYS     1 stream  2 cancelled
-- ARGV     cursor ("0" at first), approximate number of marks
-- Returns  {next cursor ("0" = the pass is complete), entry id, SHA-1 of the coalesced message to drop ("" = none), …}

local stream, cancelled = KEYS[1], KEYS[2]
local cursor, found = unpack(redis.call('HSCAN', cancelled, ARGV[1], 'COUNT', ARGV[2]))
local reply = {cursor}
for i = 1, #found, 2 do
  if redis.call('XRANGE', stream, found[i], found[i])[1] then
    reply[#reply + 1] = found[i]
    reply[#reply + 1] = found[i + 1]
  else
    redis.call('HDEL', cancelled, found[i])
  end
end
return reply
