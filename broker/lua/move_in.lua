-- Adds entries that were found in another shard.
--
-- KEYS     1 stream
-- ARGV     per entry: the number of its names and values, then the names and values
-- Returns  OK

local at = 1
while at <= #ARGV do
  local n = tonumber(ARGV[at])
  redis.call('XADD', KEYS[1], '*', unpack(ARGV, at + 1, at + n))
  at = at + n + 1
end
return 'OK'
