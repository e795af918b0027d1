-- One round of the janitor: moves due messages to the stream, and checks whether there are entries to take over.
--
-- KEYS     1–9 work  10 consumers  11 paused  12 counters  13 cancelled
-- ARGV     group, consumer, consumer of handed-back entries, lease in ms, largest number of messages to promote
-- Returns  {how many were promoted, ms until the next message is due (-1 = none is delayed), last id of the timer, are
--           there entries to take over, number of entries this consumer owns, is the queue paused, ms until the first
--           lease of another consumer could lapse (-1 = none can; 0 = one with entries has lapsed), is a
--           message of a worker cancelled, names of the other consumers…}

local stream, delayed, messages, timer = work.stream, work.delayed, work.messages, work.timer
local consumers, paused, counters = KEYS[10], KEYS[11], KEYS[12]
local group, me, handed_back, lease, limit = ARGV[1], ARGV[2], ARGV[3], tonumber(ARGV[4]), ARGV[5]

local now = server_ms()

local names = redis.call('ZRANGEBYSCORE', delayed, '-inf', now, 'LIMIT', 0, limit)
local n_promoted, are_held = 0, redis.call('EXISTS', work.holders) == 1
for _, name in ipairs(names) do
  local payload = redis.call('HGET', messages, name)
  -- This write needs no memory, and comes first: then even a server whose memory is full lets the script finish.
  redis.call('ZREM', delayed, name)
  if payload then
    local where
    local key, limits = string.match(name, '^(%Z+)%z%Z*%z?(.*)$')
    if key then
      redis.call('HDEL', messages, name)
      where = come_due(key, name, limits, payload)
    else
      where = redis.pcall('XADD', stream, '*', 'message', payload)
      if type(where) == 'table' then -- the stream has no more ids; the message stays delayed and is tried again
        redis.call('ZADD', delayed, now + 1000, name)
        break
      end
      redis.call('HDEL', messages, name)
    end
    if are_held and where ~= name then
      move_holder(name, where)
    end
  end
  n_promoted = n_promoted + 1
end
if n_promoted > 0 then
  redis.pcall('HINCRBY', counters, 'promoted', n_promoted)
end

local next_due = redis.call('ZRANGE', delayed, 0, 0, 'WITHSCORES')[2]
local next_in = next_due and math.max(0, tonumber(next_due) - now) or -1
local last_timer = redis.call('XREVRANGE', timer, '+', '-', 'COUNT', 1)[1]

local is_takeable, n_mine = 0, 0
local first_lapse = -1
local reply = {n_promoted, next_in, last_timer and last_timer[1] or '0-0', 0, 0, redis.call('EXISTS', paused), 0}
reply[8] = redis.call('EXISTS', KEYS[13])
local listed = redis.pcall('XINFO', 'CONSUMERS', stream, group)
if not listed.err then
  for _, consumer in ipairs(listed) do
    local name, pending = consumer[2], consumer[4]
    if name == me then
      n_mine = pending
    elseif name == handed_back then
      if pending > 0 then
        is_takeable = 1
      end
    else
      reply[#reply + 1] = name
      local beat = tonumber(redis.call('ZSCORE', consumers, name) or -1)
      local lapses_in = beat + lease - now
      if lapses_in >= 0 then
        first_lapse = first_lapse < 0 and lapses_in or math.min(first_lapse, lapses_in)
      elseif pending > 0 then
        first_lapse = 0
        if beat == 0 or #redis.call('XPENDING', stream, group, 'IDLE', lease, '-', '+', 1, name) > 0 then
          is_takeable = 1
        end
      end
    end
  end
end
reply[4], reply[5], reply[7] = is_takeable, n_mine, first_lapse
return reply
