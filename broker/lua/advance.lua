-- Unblocks ordering keys whose current message disappeared before it ended, as after a manual XDEL: starts the next.
--
-- KEYS     1–8 work
-- ARGV     cursor ("0" at first), approximate number of keys to check
-- Returns  {next cursor ("0" = the pass is complete), how many were advanced}

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
