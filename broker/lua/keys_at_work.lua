-- Lists the keys that have messages at work, for operators. Writes nothing.
--
-- KEYS     1–9 work
-- ARGV     group, last key of the previous page ("" at first), maximum number of keys, maximum number of messages at
--          work per key, largest message in bytes (only the head of a larger one is returned)
-- Returns  per key {key, limits ("" = none are stored), number of messages at work, number of starts whose period has
--          not passed, number in line, ms since the first failure of the message at work of an ordering key (-1 = it
--          has not failed),
--          ms for which the oldest message has waited in line (-1 = none waits), {message at work, …}};
--          a message at work: {place, ms until it is due (-1 = it is in the stream), its consumer ("" = none),
--          delivery count, ms since it was added to the stream, the encoded message}

local group, from, n_keys, n_messages, longest = ARGV[1], ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4]), tonumber(ARGV[5])
local now = server_ms()

local function message_at(where)
  local due = redis.call('ZSCORE', work.delayed, where)
  if due then
    local payload = redis.call('HGET', work.messages, where) or ''
    return {where, math.max(0, tonumber(due) - now), '', 0, 0, string.sub(payload, 1, longest)}
  end
  local entry = redis.pcall('XRANGE', work.stream, where, where)[1]
  local payload = ''
  for i = 1, entry and #entry[2] or 0, 2 do
    if entry[2][i] == 'message' then
      payload = entry[2][i + 1]
    end
  end
  local pending = redis.pcall('XPENDING', work.stream, group, where, where, 1)
  local held = not pending.err and pending[1] or {where, '', 0, 0}
  local age = math.max(0, now - tonumber(string.match(where, '^%d+') or now))
  return {where, -1, held[2], held[4], age, string.sub(payload, 1, longest)}
end

local found = {}
while #found < n_keys do
  local start = from == '' and '-' or '(' .. from .. '\1'
  local member = redis.call('ZRANGEBYLEX', work.at_work, start, '+', 'LIMIT', 0, 1)[1]
  if not member then
    break
  end
  from = string.match(member, '^(%Z*)%z')
  local key = string.match(from, '^\3?(.*)$')
  -- a key with a rate has a second member per message; rates and priorities without another key have no first one
  if key == from or string.byte(key) == 2 or string.byte(key) == 4 then
    local messages = {}
    for i, one in ipairs(redis.call('ZRANGEBYLEX', work.at_work, '[' .. from .. '\0', '(' .. from .. '\1', 'LIMIT', 0, n_messages)) do
      messages[i] = message_at(string.sub(one, #from + 2))
    end
    local since, first = redis.call('HGET', work.limits, key .. '\0since'), oldest_place(work.line, key)
    local _, n_started = recent_starts(key, now)
    found[#found + 1] = {
      key, redis.call('HGET', work.limits, key) or '', n_members(work.at_work, from), n_started,
      n_members(work.line, key), since and math.max(0, now - tonumber(since)) or -1,
      first and math.max(0, now - math.floor(first / 1000)) or -1, messages,
    }
  end
end
return found
