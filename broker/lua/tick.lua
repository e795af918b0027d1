-- Makes one round of the janitor: moves due messages to the stream, and checks whether there are entries to take over.
--
-- KEYS     1–9 work  10 consumers  11 paused  12 counters  13 cancelled  14 promoter
-- ARGV     group, consumer, consumer of handed-back entries, lease in ms, maximum number of messages to promote,
--          ms after a promotion during which only this process promotes, ms after which an owned entry may be lost,
--          number of entries that this process holds, prefix of the names of consumers on this machine,
--          number of consumers when their names were last returned
-- Returns  {number of promoted messages, ms until the next message is due (-1 = none is delayed), last id of the timer,
--           are there entries to take over, is another process the promoter, is the queue paused, ms until the first
--           lease of another consumer could lapse (-1 = none can; 0 = one with entries has lapsed), was a received
--           message cancelled, number of consumers, ids of entries that this consumer has owned for long enough to be
--           lost unless it holds them, names of the consumers on this machine (false = unchanged)}
--
-- The duration of a round does not depend on the number of live consumers.

local stream, delayed, messages, timer = work.stream, work.delayed, work.messages, work.timer
local consumers, paused, counters, promoter = KEYS[10], KEYS[11], KEYS[12], KEYS[14]
local group, me, handed_back, lease, limit = ARGV[1], ARGV[2], ARGV[3], tonumber(ARGV[4]), ARGV[5]
local promote_ms, lost_ms, n_held, machine, n_known = ARGV[6], ARGV[7], tonumber(ARGV[8]), ARGV[9], tonumber(ARGV[10])

local now = server_ms()

local function next_due()
  return tonumber(redis.call('ZRANGE', delayed, 0, 0, 'WITHSCORES')[2])
end

local owner, due = redis.pcall('GET', promoter), next_due()
local is_other, is_due = type(owner) == 'string' and owner ~= me, due and due <= now
local names = {}
if is_due and not is_other then
  names = redis.call('ZRANGEBYSCORE', delayed, '-inf', now, 'LIMIT', 0, limit)
end
local n_promoted, are_held = 0, #names > 0 and redis.call('EXISTS', work.holders) == 1
for _, name in ipairs(names) do
  local payload = redis.call('HGET', messages, name)
  -- This write needs no memory and is the first, so that even a server whose memory is full lets the script finish.
  redis.call('ZREM', delayed, name)
  if payload then
    local where
    local key, limits = string.match(name, '^(%Z+)%z%Z*%z?(.*)$')
    if key then
      redis.call('HDEL', messages, name)
      where = come_due(key, name, limits, payload)
    else
      where = redis.pcall('XADD', stream, '*', 'message', payload)
      -- the stream has no more ids, so the message stays delayed, and its promotion is tried again in a second
      if type(where) == 'table' then
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
  redis.call('SET', promoter, me, 'PX', promote_ms)
  due = next_due()
end

local function pending_of(consumer, idle, count)
  local found = redis.pcall('XPENDING', stream, group, 'IDLE', idle, '-', '+', count, consumer)
  return found.err and {} or found
end

local is_takeable, first_lapse = #pending_of(handed_back, 0, 1), -1
local silent = redis.call('ZRANGEBYSCORE', consumers, '-inf', '(' .. (now - lease), 'WITHSCORES')
for i = 1, #silent, 2 do
  local name, is_dead = silent[i], silent[i + 1] == '0'
  if name ~= me and #pending_of(name, 0, 1) > 0 then
    first_lapse = 0
    is_takeable = math.max(is_takeable, is_dead and 1 or #pending_of(name, lease, 1))
  end
  if is_takeable == 1 and first_lapse == 0 then
    break
  end
end
if first_lapse < 0 then
  local live = redis.call('ZRANGEBYSCORE', consumers, now - lease, '+inf', 'WITHSCORES', 'LIMIT', 0, 2)
  local beat = live[1] == me and live[4] or live[1] ~= me and live[2]
  first_lapse = beat and math.max(0, tonumber(beat) + lease - now) or -1
end

local owned = {}
for i, one in ipairs(pending_of(me, lost_ms, n_held + 1)) do
  owned[i] = one[1]
end

local n_consumers, here = redis.call('ZCARD', consumers), false
if n_consumers ~= n_known then
  here = {}
  for _, name in ipairs(redis.call('ZRANGE', consumers, 0, -1)) do
    if name ~= me and string.sub(name, 1, #machine) == machine then
      here[#here + 1] = name
    end
  end
end

local next_in = due and math.max(0, due - now) or -1
local last_timer = redis.pcall('XREVRANGE', timer, '+', '-', 'COUNT', 1)[1]
local is_paused, is_any_cancelled = 0, 0
if redis.call('EXISTS', paused, KEYS[13]) > 0 then
  is_paused, is_any_cancelled = redis.call('EXISTS', paused), redis.call('EXISTS', KEYS[13])
end
return {
  n_promoted, next_in, last_timer and last_timer[1] or '0-0', is_takeable, is_other and 1 or 0,
  is_paused, first_lapse, is_any_cancelled, n_consumers, owned, here,
}
