-- Finds unique keys whose waiting message was removed by hand, for example by XDEL. Writes nothing.
--
-- KEYS     1–9 work
-- ARGV     cursor ("0" at first), approximate number of fields to check
-- Returns  {next cursor ("0" = the pass is complete), ids of the messages that were removed…}

local cursor, found = unpack(redis.call('HSCAN', work.holders, ARGV[1], 'COUNT', ARGV[2]))
local reply = {cursor}
for i = 1, #found, 2 do
  if string.sub(found[i], 1, 1) == '=' and not is_there(found[i + 1]) then
    reply[#reply + 1] = string.sub(found[i], 2)
  end
end
return reply
