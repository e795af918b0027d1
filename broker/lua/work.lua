-- Functions that add and move waiting messages, keep the limits of each key, and maintain unique locks.
-- Included at the top of scripts whose first nine KEYS are ``work`` in keys.py.
--
-- A message with a key is *at work* when it has its turn; the other messages of its key wait in line:
--   an ordering key       one is at work at a time, until it is done, even while it is delayed or waits for its retry
--   a concurrency key     at most ``max`` are at work: in the stream or in flight. The key begins with the byte 1
--   a rate                at most ``n`` start per period. A message takes one of ``n`` permits when it gets its turn.
--                         The permit becomes free one period after the message starts. A rate without another key has a
--                         key of its own, which begins with the byte 2
--   a priority            when a permit becomes free, the most urgent message takes it. A message frees its permit when
--                         it starts (a period of 0). All messages with a priority and no other key share the key "\4"
-- If all permits of a rate are taken, and it is known when one becomes free, the next message takes that permit in
-- advance and is delayed until then. So the number of messages at work that have not started, plus the number of starts
-- in the last period, is never more than ``n``, however long a message waits for a worker.
--
-- The sorted set of messages at work has a member for each: the key, a zero byte and the place (entry id, or name in
-- delayed).
-- If the key has a rate, a message that has not started has a second member, which begins with the byte 3.
--
-- The line is one sorted set with equal scores, so that Redis orders it by member. A member consists of the key, a zero
-- byte, the rank (of four digits, from its priority; none with an ordering key) and the place in line: the time in
-- microseconds, or one more than the last place of that rank. A delayed message with a key is
-- named by its key, a zero byte and random text (and, if it is not at work, a zero byte and the limits with its rank:
-- "<max> <n> <period> p<rank>"), or by the member that it was in the line.
--
-- The hash of limits has these fields for a key:
--   <key>                 "<max> <n> <period in ms>" (0 = no limit), as the newest message set them; an ordering key
--                         without a rate has none
--   <key>, 0, since       when an ordering key's message at work failed first
--   <key>, 0, starts      "<time>:<number> …": how many permits become free at which time
--
-- The lock of a unique key holds the id of the message that took it. The hash of holders has two fields for that
-- message: '=<id>' -> its place (entry id, name in delayed or member of the line), and '@<place>' -> its id. So the
-- place can be updated when the message moves, and one lookup shows whether the message that took a lock still exists.
-- A third field, '+<id>', holds the newest message that was coalesced onto it.

local work = {
  stream = KEYS[1], delayed = KEYS[2], messages = KEYS[3], timer = KEYS[4],
  at_work = KEYS[5], line = KEYS[6], in_line = KEYS[7], holders = KEYS[8], limits = KEYS[9],
}

local function server_us()
  local time = redis.call('TIME')
  return time[1] * 1000000 + time[2]
end

local function server_ms()
  return math.floor(server_us() / 1000)
end

-- Another program may have stored a value of another type at one of these keys. Scripts must not fail because of that,
-- so errors from timer, counters, suspects and holders are ignored, here and in the scripts.

local function in_holders(field)
  local found = redis.pcall('HGET', work.holders, field)
  return type(found) == 'string' and found
end

-- Records the place of a message that has taken the lock of its unique key.
local function hold(id, where)
  redis.pcall('HSET', work.holders, '=' .. id, where, '@' .. where, id)
end

-- Removes the record of a message that took a lock, and the message that was coalesced onto it.
local function let_go(id, where)
  redis.pcall('HDEL', work.holders, '=' .. id, '@' .. where, '+' .. id)
end

-- Records that a message has moved from one place to another.
local function move_holder(before, now)
  local id = in_holders('@' .. before)
  if id then
    redis.pcall('HDEL', work.holders, '@' .. before)
    hold(id, now)
  end
end

-- Returns whether a message exists at this place, or true if the Redis user may not read the stream.
local function is_there(where)
  if string.find(where, '^%d+%-%d+$') then
    local found = redis.pcall('XRANGE', work.stream, where, where)
    return found.err or found[1] ~= nil
  end
  return redis.call('ZSCORE', work.delayed, where) and redis.call('HEXISTS', work.messages, where) == 1
    or redis.call('ZSCORE', work.line, where)
end

-- Returns the id of the message that holds a lock, or false, and whether the lock is stale because the message was
--          removed
-- by hand.
local function holder_of(lock)
  local id = redis.call('GET', lock)
  if not id then
    return false, false
  end
  local where = in_holders('=' .. id)
  if where and is_there(where) then
    return id, false
  end
  let_go(id, where or '')
  return false, true
end

-- Takes the lock of a unique key for a message that waits at this place, unless another waiting message holds it.
local function take_lock(lock, id, ms, where)
  local holder, is_stale = holder_of(lock)
  if not holder or holder == id then
    redis.call('SET', lock, id, 'PX', ms)
    hold(id, where)
  end
  return is_stale
end

-- Frees the lock of a message that no longer waits, unless another message with its unique key holds it.
local function unlock(lock, id, where)
  if redis.call('GET', lock) == id then
    redis.call('DEL', lock)
  end
  let_go(id, where)
end

-- Delays a message, and wakes the janitors if it is due before all others.
local function put_off(name, due, payload)
  redis.call('HSET', work.messages, name, payload)
  redis.call('ZADD', work.delayed, due, name)
  if redis.call('ZRANGE', work.delayed, 0, 0)[1] == name then
    redis.pcall('XADD', work.timer, 'MAXLEN', 16, '*', 'due', due)
  end
end

-- Returns the first message in line for a key, or nil.
local function first_in_line(key)
  return redis.call('ZRANGEBYLEX', work.line, '[' .. key .. '\0', '(' .. key .. '\1', 'LIMIT', 0, 1)[1]
end

local function stand_in_line(key, due, payload, limits)
  local prefix = key .. '\0' .. (string.match(limits, 'p(%d+)$') or '')
  -- the colon is the byte after the digit 9, so this range ends with the last place of the prefix
  local last = redis.call('ZREVRANGEBYLEX', work.line, '(' .. prefix .. ':', '[' .. prefix, 'LIMIT', 0, 1)[1]
  -- The place is the current time, so that none is given twice: a message that left the line to be delayed keeps its
  -- member as its name.
  local place = math.max(server_us(), last and tonumber(string.sub(last, -16)) + 1 or 0)
  local member = prefix .. string.format('%016d', place)
  -- %.0f, because Lua would write a large number as 1.8e+18
  redis.call('HSET', work.in_line, member, string.format('%.0f', due) .. ' ' .. payload)
  redis.call('ZADD', work.line, 0, member)
  return member
end

local function n_members(set, key)
  return redis.call('ZLEXCOUNT', set, '[' .. key .. '\0', '(' .. key .. '\1')
end

-- Returns whether messages with this key stay at work while they are delayed.
local function is_ordering(key)
  local first = string.byte(key)
  return first ~= 1 and first ~= 2 and first ~= 4
end

local function unstarted(key)
  return '\3' .. key
end

-- Returns how many messages with a key may be at work, how many may start per period, and the period in ms (0 = no
--          limit).
local function limits_of(key)
  local stored = redis.call('HGET', work.limits, key)
  if not stored then
    return (is_ordering(key) or string.byte(key) == 1) and 1 or 0, 0, 0
  end
  local max, n, period = string.match(stored, '^(%d+) (%d+) (%d+)$')
  return tonumber(max), tonumber(n), tonumber(period)
end

local function set_limits(key, limits)
  if limits ~= '' then
    redis.call('HSET', work.limits, key, string.match(limits, '^%d+ %d+ %d+'))
  elseif is_ordering(key) then
    redis.call('HDEL', work.limits, key)
  end
end

-- Returns a list of {time, number of a key's permits that become free at that time}, and the total number.
local function recent_starts(key, now)
  local starts, total = {}, 0
  for free_at, count in string.gmatch(redis.call('HGET', work.limits, key .. '\0starts') or '', '(%d+):(%d+)') do
    if tonumber(free_at) > now then
      starts[#starts + 1] = {tonumber(free_at), tonumber(count)}
      total = total + count
    end
  end
  return starts, total
end

local function save_starts(key, starts)
  local parts = {}
  for _, start in ipairs(starts) do
    if start[2] > 0 then
      parts[#parts + 1] = string.format('%.0f:%.0f', start[1], start[2])
    end
  end
  if #parts > 0 then
    redis.call('HSET', work.limits, key .. '\0starts', table.concat(parts, ' '))
  else
    redis.call('HDEL', work.limits, key .. '\0starts')
  end
end

-- Records a start. Above 50 starts per period, times are rounded up to a fiftieth of the period, to limit the list.
local function record_start(key, n, period, now)
  if period == 0 then
    return
  end
  local starts = recent_starts(key, now)
  local step = n > 50 and math.ceil(period / 50) or 1
  local free_at, last = math.ceil((now + period) / step) * step, starts[#starts]
  if last and last[1] >= free_at then
    last[2] = last[2] + 1
  else
    starts[#starts + 1] = {free_at, 1}
  end
  save_starts(key, starts)
end

-- Takes a permit for a start. Returns the time in ms from which it is free, 0 if it is free now, or nil if none becomes
-- free before one of the messages at work has started.
local function take_permit(key, n, now)
  local starts, total = recent_starts(key, now)
  -- the number of permits that must stay unused, which is positive if the rate was lowered
  local excess = n_members(work.at_work, unstarted(key)) + total - n
  if excess < 0 then
    return 0
  end
  for _, start in ipairs(starts) do
    if start[2] > excess then
      start[2] = start[2] - 1
      save_starts(key, starts)
      return start[1]
    end
    excess = excess - start[2]
  end
  return nil
end

-- Adds a message that is due to the stream, and returns its entry id. Delays it if the stream has no more ids.
local function add_to_stream(name, payload)
  local id = redis.pcall('XADD', work.stream, '*', 'message', payload)
  if type(id) == 'table' then
    put_off(name, server_ms() + 1000, payload)
    return name
  end
  return id
end

-- Gives a message its turn, in the stream or (until it is due) delayed, if the limits of its key allow it.
-- Returns its place, or nil if it has to wait in line.
local function bring_to_work(key, name, due, payload)
  local max, n = limits_of(key)
  if max > 0 and n_members(work.at_work, key) >= max then
    return nil
  end
  if n > 0 then
    local free_at = take_permit(key, n, server_ms())
    if not free_at then
      return nil
    end
    due = math.max(due, free_at)
  end
  local where = name
  if due > 0 and due > server_ms() then
    put_off(name, due, payload)
  else
    where = add_to_stream(name, payload)
  end
  if max > 0 then
    redis.call('ZADD', work.at_work, 0, key .. '\0' .. where)
  end
  if n > 0 then
    redis.call('ZADD', work.at_work, 0, unstarted(key) .. '\0' .. where)
  end
  return where
end

-- Adds a message with a key: gives it its turn, or puts it in line. Returns its place.
local function arrive(key, name, due, payload, limits)
  set_limits(key, limits)
  return not first_in_line(key) and bring_to_work(key, name, due, payload) or stand_in_line(key, due, payload, limits)
end

-- Gives the next messages of a key their turn, as many as its limits allow. Deletes limits that no message needs.
local function next_in_line(key)
  local member = first_in_line(key)
  while member do
    local due, payload = string.match(redis.call('HGET', work.in_line, member) or '0 ', '^(%d+) (.*)$')
    local where = bring_to_work(key, member, tonumber(due), payload)
    if not where then
      return
    end
    if where ~= member then
      move_holder(member, where)
    end
    redis.call('ZREM', work.line, member)
    redis.call('HDEL', work.in_line, member)
    if is_ordering(key) then
      return
    end
    member = first_in_line(key)
  end
  if redis.call('HEXISTS', work.limits, key) == 1
    and n_members(work.at_work, key) + n_members(work.at_work, unstarted(key)) == 0 then
    redis.call('HDEL', work.limits, key)
  end
end

-- Records that a message at work has moved. Does nothing if it was not at work at the old place.
local function move_at_work(key, before, now)
  for _, one in ipairs({key, unstarted(key)}) do
    if redis.call('ZREM', work.at_work, one .. '\0' .. before) == 1 then
      redis.call('ZADD', work.at_work, 0, one .. '\0' .. now)
    end
  end
end

-- Promotes a delayed message with a key, and returns its place. If the message is already at work, it is added to the
-- stream. Otherwise, it gets its turn or waits in line.
local function come_due(key, name, limits, payload)
  local is_unstarted = redis.call('ZSCORE', work.at_work, unstarted(key) .. '\0' .. name)
  if not is_unstarted and not redis.call('ZSCORE', work.at_work, key .. '\0' .. name) then
    return arrive(key, name, 0, payload, limits)
  end
  local where
  local _, n = limits_of(key)
  if n > 0 and not is_unstarted then -- the retry of a message with an ordering key and a rate
    local now = server_ms()
    local free_at = take_permit(key, n, now) or now
    redis.call('ZADD', work.at_work, 0, unstarted(key) .. '\0' .. name)
    if free_at > now then
      put_off(name, free_at, payload)
      return name
    end
  end
  where = add_to_stream(name, payload)
  move_at_work(key, name, where)
  return where
end

-- Records that a message whose key has a rate or a priority has started. Its permit becomes free after a period.
local function start_work(key, where, limits)
  local _, n, period = string.match(limits, '^(%d+) (%d+) (%d+)')
  redis.call('ZREM', work.at_work, unstarted(key) .. '\0' .. where)
  record_start(key, tonumber(n), tonumber(period), server_ms())
  next_in_line(key)
end

-- Ends the turn of a message that was removed from this place, and gives the next messages their turn.
-- Does nothing if it was not at work at this place.
local function leave_work(key, gone)
  local _, n, period = limits_of(key)
  local was_unstarted = n > 0 and redis.call('ZREM', work.at_work, unstarted(key) .. '\0' .. gone) == 1
  if was_unstarted and not string.find(gone, '^%d+%-%d+$') then
    -- The message had taken a permit that becomes free in the future. Record a start, so that no other message takes
    -- the permit before that time.
    record_start(key, n, period, server_ms())
  end
  if redis.call('ZREM', work.at_work, key .. '\0' .. gone) == 1 or was_unstarted then
    if is_ordering(key) then
      redis.call('HDEL', work.limits, key .. '\0since')
    end
    next_in_line(key)
  end
end
