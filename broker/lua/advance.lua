-- Unblocks ordering keys whose current message disappeared, for example by a manual XDEL: starts their next message.
--
-- KEYS     1–8 work
-- ARGV     cursor ("0" at first), approximate number of keys to check
-- Returns  {next cursor ("0" = the pass is complete), how many ordering keys were unblocked}

local cursor, found = unpack(redis.call('HSCAN', work.heads, ARGV[1], 'COUNT', ARGV[2]))
local n = 0
for i = 1, #found, 2 do
  local key, where = found[i], found[i + 1]
  if not is_there(where) then
    next_in_line(key, where)
    n = n + 1
  end
end
return {cursor, n}
