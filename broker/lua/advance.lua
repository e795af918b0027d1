-- Repairs the limits of keys after messages disappeared, for example by a manual XDEL: their work ends, and messages in
-- line come to work.
--
-- KEYS     1–9 work
-- ARGV     cursor ("" at first), approximate number of messages or keys to check
-- Returns  {next cursor ("" = the pass is complete), how many messages at work had disappeared}
--
-- A pass has two parts, named by the first letter of the cursor: "w" goes through the messages at work, "l" through the
-- keys that have messages in line.

local cursor, page = ARGV[1], tonumber(ARGV[2])

if cursor == '' then
  if redis.call('EXISTS', work.at_work, work.line, work.limits) == 0 then
    return {'', 0}
  end
  cursor = 'w0'
end
local part, from = string.sub(cursor, 1, 1), string.sub(cursor, 2)

if part == 'w' then
  local n = 0
  local next_cursor, found = unpack(redis.call('ZSCAN', work.at_work, from, 'COUNT', page))
  for i = 1, #found, 2 do
    local key, where = string.match(found[i], '^(%Z*)%z(.*)$')
    if not is_there(where) then
      leave_work(key, where)
      n = n + 1
    end
  end
  return {next_cursor == '0' and 'l' or 'w' .. next_cursor, n}
end

for _ = 1, page do
  local member = redis.call('ZRANGEBYLEX', work.line, from == '' and '-' or '(' .. from .. '\1', '+', 'LIMIT', 0, 1)[1]
  if not member then
    return {'', 0}
  end
  from = string.match(member, '^(%Z*)%z')
  next_in_line(from)
end
return {'l' .. from, 0}
