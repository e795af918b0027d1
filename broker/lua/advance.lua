-- Puts the next of ordering keys to work whose message at work is gone without having ended, as after XDEL by hand.
--
-- KEYS     1–8 work
-- ARGV     cursor ("0" at first), look at about so many keys
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
