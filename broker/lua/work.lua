-- Functions that add and move waiting messages, keep the order of each ordering key, and maintain unique locks.
-- Included at the top of scripts whose first eight KEYS are ``work`` in keys.py.
--
-- One message per ordering key is current: it is in the stream, in flight or delayed (as a retry, too). The others wait
-- in line until it is done or a dead letter. The line is one sorted set with equal scores, so that Redis orders it by
-- member. A member consists of the ordering key, a zero byte and the place in line. A delayed message with an ordering
-- key is named by its ordering key, a zero byte and random text, or by the member that it was in the line.
--
-- The lock of a unique key holds the id of the message that took it. The hash of holders has two fields for that
-- message: '=<id>' -> its place (entry id, name in delayed or member of the line), and '@<place>' -> its id. So the
-- place follows the message when it moves, and one lookup shows whether the message of a lock is gone. A third field,
-- '+<id>', holds the newest message that was coalesced onto it.

local work = {
  stream = KEYS[1], delayed = KEYS[2], messages = KEYS[3], timer = KEYS[4],
  heads = KEYS[5], line = KEYS[6], in_line = KEYS[7], holders = KEYS[8],
}

local function server_ms()
  local time = redis.call('TIME')
  return time[1] * 1000 + math.floor(time[2] / 1000)
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

local function is_at_work(key)
  return redis.call('HEXISTS', work.heads, key) == 1
end

-- Records the new place of this key's current message, if its place was ``before`` (nil = it is a new message).
local function note_where(key, before, now)
  if not before or redis.call('HGET', work.heads, key) == before then
    redis.call('HSET', work.heads, key, now)
  end
end

local function stand_in_line(key, due, payload)
  local last = redis.call('ZREVRANGEBYLEX', work.line, '(' .. key .. '\1', '[' .. key .. '\0', 'LIMIT', 0, 1)[1]
  local place = last and tonumber(string.sub(last, -16)) + 1 or 1
  local member = key .. '\0' .. string.format('%016d', place)
  -- Lua would format a large number as 1.8e+18
  redis.call('HSET', work.in_line, member, string.format('%.0f', due) .. ' ' .. payload)
  redis.call('ZADD', work.line, 0, member)
  return member
end

-- Starts the next message of a key if its current message was at this place and is gone.
local function next_in_line(key, gone)
  if redis.call('HGET', work.heads, key) ~= gone then
    return
  end
  local member = redis.call('ZRANGEBYLEX', work.line, '[' .. key .. '\0', '(' .. key .. '\1', 'LIMIT', 0, 1)[1]
  if not member then
    redis.call('HDEL', work.heads, key)
    return
  end
  local due, payload = string.match(redis.call('HGET', work.in_line, member) or '0 ', '^(%d+) (.*)$')
  if tonumber(due) > server_ms() then
    put_off(member, due, payload)
    redis.call('HSET', work.heads, key, member)
  else
    local id = redis.call('XADD', work.stream, '*', 'message', payload)
    redis.call('HSET', work.heads, key, id)
    move_holder(member, id)
  end
  redis.call('ZREM', work.line, member)
  redis.call('HDEL', work.in_line, member)
end
