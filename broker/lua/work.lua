-- Functions that add and move waiting messages, keep the limits of each key, and maintain unique locks.
-- Included at the top of scripts whose first nine KEYS are ``work`` in keys.py.
--
-- A message with an ordering key is *at work* while it is in the stream, in flight or delayed (as a retry, too). One
-- message per key is at work; the others wait in line. The set of messages at work has a member per message: the key, a
-- zero byte and its place (entry id, or name in delayed). When a message leaves, the next in line comes to work.
--
-- The line is one sorted set with equal scores, so that Redis orders it by member. A member consists of the key, a zero
-- byte and the place in line: the time in microseconds, or one more than the last place. A delayed message with a key is
-- named by its key, a zero byte and random text, or by the member that it was in the line.
--
-- The hash of limits has a field '<key>', a zero byte, 'since': when the message at work of an ordering key failed first.
--
-- The lock of a unique key holds the id of the message that took it. The hash of holders has two fields for that
-- message: '=<id>' -> its place (entry id, name in delayed or member of the line), and '@<place>' -> its id. So the
-- place follows the message when it moves, and one lookup shows whether the message of a lock is gone. A third field,
-- '+<id>', holds the newest message that was coalesced onto it.

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

-- Records the place of the message that took the lock of a unique key.
local function hold(id, where)
  redis.call('HSET', work.holders, '=' .. id, where, '@' .. where, id)
end

-- Removes the record of that message, and the message that was coalesced onto it.
local function let_go(id, where)
  redis.call('HDEL', work.holders, '=' .. id, '@' .. where, '+' .. id)
end

-- Records that the message has moved from one place to another.
local function move_holder(before, now)
  local id = redis.call('HGET', work.holders, '@' .. before)
  if id then
    redis.call('HDEL', work.holders, '@' .. before)
    hold(id, now)
  end
end

-- Returns whether a message exists at this place. Assumes so if the caller's user may not read the stream.
local function is_there(where)
  if string.find(where, '^%d+%-%d+$') then
    local found = redis.pcall('XRANGE', work.stream, where, where)
    return found.err or found[1] ~= nil
  end
  return redis.call('ZSCORE', work.delayed, where) and redis.call('HEXISTS', work.messages, where) == 1
    or redis.call('ZSCORE', work.line, where)
end

-- Returns the message that holds a lock, or false; and whether the lock is stale, as its message was removed by hand.
local function holder_of(lock)
  local id = redis.call('GET', lock)
  if not id then
    return false, false
  end
  local where = redis.call('HGET', work.holders, '=' .. id)
  if where and is_there(where) then
    return id, false
  end
  let_go(id, where or '')
  return false, true
end

-- Takes a lock for a message that waits at this place, unless another waiting message has it.
local function take_lock(lock, id, ms, where)
  local holder, is_stale = holder_of(lock)
  if not holder or holder == id then
    redis.call('SET', lock, id, 'PX', ms)
    hold(id, where)
  end
  return is_stale
end

-- Frees the lock of a message that no longer waits, unless another message of its key has it.
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
    redis.call('XADD', work.timer, 'MAXLEN', 1, '*', 'due', due)
  end
end

-- Returns the first message in line for a key, or nil.
local function first_in_line(key)
  return redis.call('ZRANGEBYLEX', work.line, '[' .. key .. '\0', '(' .. key .. '\1', 'LIMIT', 0, 1)[1]
end

local function stand_in_line(key, due, payload)
  local last = redis.call('ZREVRANGEBYLEX', work.line, '(' .. key .. '\1', '[' .. key .. '\0', 'LIMIT', 0, 1)[1]
  -- the time, so that no place is given twice: a message that left the line for delayed keeps its member as its name
  local place = math.max(server_us(), last and tonumber(string.sub(last, -16)) + 1 or 0)
  local member = key .. '\0' .. string.format('%016d', place)
  -- Lua would format a large number as 1.8e+18
  redis.call('HSET', work.in_line, member, string.format('%.0f', due) .. ' ' .. payload)
  redis.call('ZADD', work.line, 0, member)
  return member
end

-- Brings a message to work, in the stream or (until it is due) delayed, if the limits of its key allow it.
-- Returns its place; nil if it has to wait in line.
local function bring_to_work(key, name, due, payload)
  if redis.call('ZLEXCOUNT', work.at_work, '[' .. key .. '\0', '(' .. key .. '\1') > 0 then
    return nil
  end
  local where = name
  if due > 0 and due > server_ms() then
    put_off(name, due, payload)
  else
    where = redis.call('XADD', work.stream, '*', 'message', payload)
  end
  redis.call('ZADD', work.at_work, 0, key .. '\0' .. where)
  return where
end

-- Adds a message with a key: brings it to work, or lets it stand in line. Returns its place.
local function arrive(key, name, due, payload)
  return not first_in_line(key) and bring_to_work(key, name, due, payload) or stand_in_line(key, due, payload)
end

-- Brings the next messages of a key to work, as many as its limits allow.
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
    member = first_in_line(key)
  end
end

-- Records that a message at work has moved; does nothing if it was not at work there.
local function move_at_work(key, before, now)
  if redis.call('ZREM', work.at_work, key .. '\0' .. before) == 1 then
    redis.call('ZADD', work.at_work, 0, key .. '\0' .. now)
  end
end

-- Ends the work of a message that was at this place and is gone, and brings the next ones to work.
-- Does nothing if it was not at work there.
local function leave_work(key, gone)
  if redis.call('ZREM', work.at_work, key .. '\0' .. gone) == 1 then
    redis.call('HDEL', work.limits, key .. '\0since')
    next_in_line(key)
  end
end
