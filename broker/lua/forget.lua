-- Deletes the records of messages that locked a unique key and were removed, for example by a manual XDEL. The next
-- message with the key takes the lock, or the lock expires.
--
-- KEYS     1–9 work
-- ARGV     cursor ("0" at first), approximate number of fields to check
-- Returns  {next cursor ("0" = the pass is complete), number of messages whose record was deleted}

local cursor, found = unpack(redis.call('HSCAN', work.holders, ARGV[1], 'COUNT', ARGV[2]))
local n = 0
for i = 1, #found, 2 do
  local field, where = found[i], found[i + 1]
  if string.sub(field, 1, 1) == '=' and not is_there(where) then
    let_go(string.sub(field, 2), where)
    n = n + 1
  end
end
return {cursor, n}
