-- Ends the turns of messages at work that were removed, for example by a manual XDEL, so that messages in line get
-- their turn.
--
-- KEYS     1–9 work
-- ARGV     cursor ("" at first), approximate number of messages or keys to check
-- Returns  {next cursor ("" = the pass is complete), number of turns that were ended}
--
-- A pass has three parts, which the cursor's first letter names: "w" scans the messages at work, "h" scans the hash of
-- limits and deletes those that no message needs, and "l" scans the keys that have messages in line.

local cursor, page = ARGV[1], tonumber(ARGV[2])

if cursor == '' then
  if redis.call('EXISTS', work.at_work, work.line, work.limits) == 0 then
    return {'', 0}
  end
  cursor = 'w0'
end
-- A server whose memory is full lets a script finish if its first write needs no memory.
redis.call('ZREM', work.delayed, '')
local part, from = string.sub(cursor, 1, 1), string.sub(cursor, 2)

if part == 'w' then
  local n = 0
  local next_cursor, found = unpack(redis.call('ZSCAN', work.at_work, from, 'COUNT', page))
  for i = 1, #found, 2 do
    local key, where = string.match(found[i], '^(%Z*)%z(.*)$')
    if not is_there(where) then
      leave_work(string.match(key, '^\3?(.*)$'), where)
      redis.call('ZREM', work.at_work, found[i])
      n = n + 1
    end
  end
  return {next_cursor == '0' and 'h0' or 'w' .. next_cursor, n}
end

if part == 'h' then
  local now = server_ms()
  local next_cursor, found = unpack(redis.call('HSCAN', work.limits, from, 'COUNT', page))
  for i = 1, #found, 2 do
    local key, what = string.match(found[i], '^(%Z*)%z?(.*)$')
    if what == 'starts' then
      save_starts(key, (recent_starts(key, now)))
    elseif n_members(work.at_work, key) + n_members(work.at_work, unstarted(key)) == 0 and not first_in_line(key) then
      redis.call('HDEL', work.limits, found[i])
    end
  end
  return {next_cursor == '0' and 'l' or 'h' .. next_cursor, 0}
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
