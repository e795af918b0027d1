-- Reads a queue's statistics atomically. Writes nothing.
--
-- KEYS     1 stream  2 delayed  3 dead  4 consumers  5 paused  6 counters  7 ordered:line
-- ARGV     group, lease in ms, maximum number of pending ids to check for orphans and ghosts (pending, entry deleted)
-- Returns  {length, in flight, idle time in ms of the oldest pending entry (-1 = none), delayed, orphans, dead,
--           age in ms of the oldest entry or, if it is older, of the oldest message that waits for more urgent ones
--           (-1 = none, or the entry's id is ahead of the clock), entries added,
--           ms until the next delayed message is due (-1 = none), is paused, messages in line, ghosts,
--           the server's time in ms, id of the oldest entry ("" = none), the last id that the stream generated,
--           entries that other programs removed (on Redis 6.2: ghosts that were found),
--           name, pending, heartbeat age in ms (-1 = none), … per consumer}

local stream, delayed, dead, consumers, paused, counters = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5], KEYS[6]
local group, page = ARGV[1], tonumber(ARGV[3])

local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)

local length = redis.call('XLEN', stream)
local first = redis.call('XRANGE', stream, '-', '+', 'COUNT', 1)[1]
local oldest_age = first and math.max(-1, now - tonumber(string.match(first[1], '^%d+'))) or -1

-- Find the oldest message that waits for more urgent ones. Messages with other keys are left out, because this would
-- have to read the whole line.
local n_in_line = redis.call('ZCARD', KEYS[7])
local place = n_in_line > 0 and oldest_place(KEYS[7], '\4')
if place then
  oldest_age = math.max(oldest_age, now - math.floor(place / 1000))
end

local added = tonumber(redis.call('HGET', counters, 'enqueued') or 0)
local gone = tonumber(redis.call('HGET', counters, 'ghosts') or 0)
local last_id = '0-0'
local facts = redis.pcall('XINFO', 'STREAM', stream)
if not facts.err then
  for i = 1, #facts, 2 do
    if facts[i] == 'entries-added' then -- since Redis 7.0; on older servers, the broker's own count is used
      added = facts[i + 1]
      gone = added - length - tonumber(redis.call('HGET', counters, 'removed') or 0)
      added = added - tonumber(redis.call('HGET', counters, 'moved') or 0) -- moved entries are counted in their shards
    elseif facts[i] == 'last-generated-id' then
      last_id = facts[i + 1]
    end
  end
end

local in_flight, oldest_idle, orphans, ghosts = 0, -1, 0, 0
local summary = redis.pcall('XPENDING', stream, group)
local last_delivered = nil
if not summary.err then
  in_flight = summary[1]
  last_delivered = last_delivered_id(stream, group)
  local function count(from, to)
    local found = redis.call('XRANGE', stream, from, to, 'COUNT', 1)[1]
    while found and orphans < page do
      orphans = orphans + 1
      local rest = behind(found[1])
      found = rest and redis.call('XRANGE', stream, rest, to, 'COUNT', 1)[1]
    end
  end
  local pending = redis.call('XPENDING', stream, group, '-', '+', page)
  local from = '-'
  for i, one in ipairs(pending) do
    if i == 1 then
      oldest_idle = one[3]
    end
    count(from, '(' .. one[1])
    from = behind(one[1])
    if not redis.call('XRANGE', stream, one[1], one[1])[1] then
      ghosts = ghosts + 1
    end
  end
  if #pending < page and last_delivered and from then
    count(from, last_delivered)
  end
end

local next_due = redis.call('ZRANGE', delayed, 0, 0, 'WITHSCORES')[2]
local reply = {
  length, in_flight, oldest_idle, redis.call('ZCARD', delayed), orphans, redis.call('XLEN', dead), oldest_age, added,
  next_due and math.max(0, tonumber(next_due) - now) or -1, redis.call('EXISTS', paused),
  n_in_line, ghosts, now, first and first[1] or '', last_id, gone,
}

local seen = {}
local function tell(name, pending)
  seen[name] = true
  local beat = redis.call('ZSCORE', consumers, name)
  reply[#reply + 1] = name
  reply[#reply + 1] = pending
  reply[#reply + 1] = beat and beat ~= '0' and math.max(0, now - tonumber(beat)) or -1
end
local listed = redis.pcall('XINFO', 'CONSUMERS', stream, group)
if not listed.err then
  for _, consumer in ipairs(listed) do
    tell(consumer[2], consumer[4])
  end
end
for _, name in ipairs(redis.call('ZRANGE', consumers, 0, -1)) do
  if not seen[name] then
    tell(name, 0)
  end
end
return reply
