-- Adds all or none of the given messages to one queue. enqueue_plain.lua adds single messages without options.
--
-- KEYS     1–9 work  10 recent of this producer  11 counters  12… one per unique key
-- ARGV     enqueue id, ms to remember it     recognises a call that is repeated after a lost reply; a producer
--                                            repeats only its last call
--          max_queue_length                  how many messages the stream and the line may hold; 0 = no limit
--          then nine per message: payload, name in delayed, delay in ms (0 = none), message id,
--          number of its unique key in KEYS (0 = none), ms after which the unique lock ends, key ("" = none) and limits
--          (see work.lua), 1: it may be coalesced onto the waiting message of its unique key
-- Returns  {"ADDED", id, …}       per message: its own id, or the id of the waiting message of its unique key
--          {"FULL", length}       nothing was added
--
-- If the message that holds a lock was removed, for example by a manual XDEL, the next message takes the lock.
-- A repeated call returns the first call's reply, unless a lock has been freed or taken in the meantime.

local FIXED, PER_MESSAGE = 3, 9
local stream, recent, counters = KEYS[1], KEYS[10], KEYS[11]
local enqueue_id, remember_ms, max_length = ARGV[1], ARGV[2], tonumber(ARGV[3])
local n = (#ARGV - FIXED) / PER_MESSAGE

local reply = {'ADDED'}
if redis.call('SET', recent, enqueue_id, 'PX', remember_ms, 'GET') == enqueue_id then
  for i = 1, n do
    local at = FIXED + (i - 1) * PER_MESSAGE
    local lock = tonumber(ARGV[at + 5])
    local holder = lock > 0 and ARGV[at + 9] == '1' and redis.call('GET', KEYS[lock])
    reply[#reply + 1] = holder or ARGV[at + 4]
  end
  return reply
end

if max_length > 0 then
  local length = redis.call('XLEN', stream) + redis.call('ZCARD', work.line)
  if length + n > max_length then
    redis.call('DEL', recent)
    return {'FULL', length}
  end
end

local n_added, n_coalesced, n_stale = 0, 0, 0
local now, earliest = nil, nil
for i = 1, n do
  local at = FIXED + (i - 1) * PER_MESSAGE
  local payload, name, delay, id = ARGV[at + 1], ARGV[at + 2], tonumber(ARGV[at + 3]), ARGV[at + 4]
  local lock, key, limits = tonumber(ARGV[at + 5]), ARGV[at + 7], ARGV[at + 8]
  local holder, is_stale = false, false
  if lock > 0 then
    holder, is_stale = holder_of(KEYS[lock])
  end
  if is_stale then
    n_stale = n_stale + 1
  end
  if holder and ARGV[at + 9] == '1' then
    n_coalesced = n_coalesced + 1
    if holder ~= id then
      redis.pcall('HSET', work.holders, '+' .. holder, payload)
    end
    reply[#reply + 1] = holder
  else
    if delay > 0 then
      now = now or server_ms()
    end
    local where = name
    if key ~= '' then
      if delay > 0 and not is_ordering(key) then
        put_off(name, now + delay, payload)
      else
        where = arrive(key, name, delay > 0 and now + delay or 0, payload, limits)
      end
    elseif delay > 0 then
      redis.call('HSET', work.messages, name, payload)
      redis.call('ZADD', work.delayed, now + delay, name)
      if not earliest or now + delay < earliest then
        earliest = now + delay
      end
    else
      where = redis.call('XADD', stream, '*', 'message', payload)
    end
    if lock > 0 and not holder then
      redis.call('SET', KEYS[lock], id, 'PX', ARGV[at + 6])
      hold(id, where)
    end
    n_added = n_added + 1
    reply[#reply + 1] = id
  end
end

if earliest and tonumber(redis.call('ZRANGE', work.delayed, 0, 0, 'WITHSCORES')[2]) >= earliest then
  -- wake the janitors, which wait for a later time, because a new message is due before all others
  redis.pcall('XADD', work.timer, 'MAXLEN', 16, '*', 'due', earliest)
end
if n_added > 0 then
  redis.pcall('HINCRBY', counters, 'enqueued', n_added)
end
if n_coalesced > 0 then
  redis.pcall('HINCRBY', counters, 'coalesced', n_coalesced)
end
if n_stale > 0 then
  redis.pcall('HINCRBY', counters, 'stale_locks', n_stale)
end
return reply
