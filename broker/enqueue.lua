-- Adds messages to one queue: all of them, or none.
--
-- KEYS     1 stream  2 delayed  3 delayed:messages  4 recent of this producer  5 timer  6 counters
--          7… one per unique key
-- ARGV     enqueue id, ms to remember it     a client that repeats itself after a lost reply is recognised by it:
--                                            a producer repeats its last call and no other
--          max_queue_length                  entries the stream may hold; 0 = no limit
--          then six per message: payload, name in delayed, delay in ms (0 = none), message id,
--          number of its unique key in KEYS (0 = none), ms after which the unique lock ends
-- Returns  {"ADDED", id, …}       per message: its own id, or the id of the waiting message of its unique key
--          {"FULL", length}       nothing was added
--
-- A repeated call answers as the first did, as far as locks still tell.

local FIXED, PER_MESSAGE = 3, 6
local stream, delayed, messages, recent, timer, counters = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5], KEYS[6]
local enqueue_id, remember_ms, max_length = ARGV[1], ARGV[2], tonumber(ARGV[3])
local n = (#ARGV - FIXED) / PER_MESSAGE

local reply = {'ADDED'}
if redis.call('SET', recent, enqueue_id, 'PX', remember_ms, 'GET') == enqueue_id then
  for i = 1, n do
    local at = FIXED + (i - 1) * PER_MESSAGE
    local lock = tonumber(ARGV[at + 5])
    local holder = lock > 0 and redis.call('GET', KEYS[lock])
    reply[#reply + 1] = holder or ARGV[at + 4]
  end
  return reply
end

if max_length > 0 then
  local length = redis.call('XLEN', stream)
  if length + n > max_length then
    redis.call('DEL', recent)
    return {'FULL', length}
  end
end

local n_added, n_coalesced = 0, 0
local now, earliest = nil, nil
for i = 1, n do
  local at = FIXED + (i - 1) * PER_MESSAGE
  local payload, name, delay, id = ARGV[at + 1], ARGV[at + 2], tonumber(ARGV[at + 3]), ARGV[at + 4]
  local lock = tonumber(ARGV[at + 5])
  local holder = lock > 0 and redis.call('GET', KEYS[lock])
  if holder then
    n_coalesced = n_coalesced + 1
  else
    if lock > 0 then
      redis.call('SET', KEYS[lock], id, 'PX', ARGV[at + 6])
    end
    if delay > 0 then
      if not now then
        local time = redis.call('TIME')
        now = time[1] * 1000 + math.floor(time[2] / 1000)
      end
      redis.call('HSET', messages, name, payload)
      redis.call('ZADD', delayed, now + delay, name)
      if not earliest or now + delay < earliest then
        earliest = now + delay
      end
    else
      redis.call('XADD', stream, '*', 'message', payload)
    end
    n_added = n_added + 1
  end
  reply[#reply + 1] = holder or id
end

if earliest and tonumber(redis.call('ZRANGE', delayed, 0, 0, 'WITHSCORES')[2]) >= earliest then
  -- a new first one: whoever waits for the old first one must look again
  redis.call('XADD', timer, 'MAXLEN', 1, '*', 'due', earliest)
end
if n_added > 0 then
  redis.call('HINCRBY', counters, 'enqueued', n_added)
end
if n_coalesced > 0 then
  redis.call('HINCRBY', counters, 'coalesced', n_coalesced)
end
return reply
