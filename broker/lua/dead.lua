-- Functions that add dead letters and limit their number and size. Included at the top of scripts.
--
-- The sorted set {dead}:mistakes groups dead letters by their cause: member = id, score = a hash of the reason, the
-- actor, the field and the error class. Beyond the limits, the oldest dead letters with the most frequent cause are
-- deleted, so that many dead letters with one error do not evict the others. Dead letters without a group are deleted
-- by age.

-- Number of times that the limit in bytes is checked while dead letters of that total size are added. More checks would
-- cost more, because measuring takes the server up to 0.1 µs per dead letter.
local CHECKS_PER_BOUND = 64
-- Dead letters are deleted when the limit is exceeded by this number, and at most this number at a time.
local SLACK = 100
-- Number of equally spaced samples of the sorted set in which the most frequent cause is sought. A cause of more than
-- an eighth of all dead letters is always found.
local PLACES = 8

local function mistakes_of(dead)
  return dead .. ':mistakes'
end

-- Returns the score of a dead letter's cause.
local function mistake_of(letter)
  local what = ''
  for i = 1, #letter, 2 do
    local name, value = letter[i], letter[i + 1]
    if name == 'reason' or name == 'actor' or name == 'field' then
      what = what .. name .. '=' .. value .. '\0'
    elseif name == 'error' then
      what = what .. (string.match(value, '^([%w_.]+):') or '') .. '\0'
    end
  end
  return tonumber(string.sub(redis.sha1hex(what), 1, 8), 16)
end

-- Returns the score of the most frequent cause, or nil if there is none.
local function most_frequent(mistakes)
  local n, best, most = redis.pcall('ZCARD', mistakes), nil, 0
  if type(n) ~= 'number' then
    return nil -- another program has written a value of another type
  end
  for place = 0, n > 0 and PLACES or -1 do
    local rank = math.floor((n - 1) * place / PLACES)
    local score = redis.call('ZRANGE', mistakes, rank, rank, 'WITHSCORES')[2]
    if score ~= best then
      local count = redis.call('ZCOUNT', mistakes, score, score)
      if count > most then
        best, most = score, count
      end
    end
  end
  return best
end

-- Deletes n dead letters with the most frequent cause, and returns how many were deleted.
local function evict(dead, n)
  local mistakes, n_deleted = mistakes_of(dead), 0
  while n_deleted < n do
    local score = most_frequent(mistakes)
    if not score then
      break
    end
    local ids = redis.call('ZRANGEBYSCORE', mistakes, score, score, 'LIMIT', 0, math.min(n - n_deleted, SLACK))
    -- XDEL does not count dead letters that were removed by hand, or purged or requeued by an older release
    n_deleted = n_deleted + redis.call('XDEL', dead, unpack(ids))
    redis.call('ZREM', mistakes, unpack(ids))
  end
  if n_deleted < n then
    n_deleted = n_deleted + redis.call('XTRIM', dead, 'MAXLEN', '~', math.max(1, redis.call('XLEN', dead) - n + n_deleted))
  end
  return n_deleted
end

-- Deletes dead letters until the stream needs at most ``keep_bytes`` of memory, but never the last one. Does nothing if
-- the Redis user may not measure memory. Returns the number of deleted dead letters.
local function trim_to_bytes(dead, keep_bytes)
  local n_deleted = 0
  for _ = 1, 10 do
    local n_bytes, n = redis.pcall('MEMORY', 'USAGE', dead, 'SAMPLES', 0), redis.call('XLEN', dead)
    if type(n_bytes) ~= 'number' or n_bytes <= keep_bytes or n <= 1 then
      break
    end
    -- dead letters differ in size, so one step may not delete enough
    local n_evicted = evict(dead, math.min(n - 1, math.ceil(n * (1 - keep_bytes / n_bytes))))
    n_deleted = n_deleted + n_evicted
    if n_evicted == 0 then
      break
    end
  end
  return n_deleted
end

-- Number of dead letters whose expiry is checked whenever one is added.
local CHECKED = 20

-- Deletes the causes of expired dead letters, a few per call, or all causes if there are no dead letters.
local function forget_mistakes(dead, n_left, oldest_ms, n_calls)
  local mistakes = mistakes_of(dead)
  local n = redis.pcall('ZCARD', mistakes)
  if type(n) ~= 'number' or n <= n_left then
    return
  end
  if n_left == 0 then
    redis.call('DEL', mistakes)
    return
  end
  local start = CHECKED * n_calls % n
  for _, id in ipairs(redis.call('ZRANGE', mistakes, start, start + CHECKED - 1)) do
    if tonumber(string.match(id, '^%d+')) < oldest_ms then
      redis.call('ZREM', mistakes, id)
    end
  end
end

-- Adds a dead letter, given as names and values, and returns its id. Deletes others beyond the limits. Deleted ones
-- that had not expired are counted as ``dead_evicted``.
local function add_dead_letter(dead, counters, letter, now, keep_ms, keep_n, keep_bytes)
  local oldest_ms, n_evicted = math.max(0, now - keep_ms), 0
  local id = redis.call('XADD', dead, '*', unpack(letter))
  local n_added = tonumber(redis.pcall('HINCRBY', counters, 'dead', 1)) or now
  redis.call('XTRIM', dead, 'MINID', '~', string.format('%d', oldest_ms))
  forget_mistakes(dead, redis.call('XLEN', dead) - 1, oldest_ms, n_added)
  local n_beyond = redis.call('XLEN', dead) - tonumber(keep_n)
  if n_beyond >= SLACK then
    n_evicted = evict(dead, n_beyond)
  end
  local n_bytes = 0
  for _, part in ipairs(letter) do
    n_bytes = n_bytes + #part
  end
  local total, step = redis.pcall('HINCRBY', counters, 'dead_bytes', n_bytes), math.ceil(keep_bytes / CHECKS_PER_BOUND)
  total = tonumber(total) or n_bytes
  if math.floor(total / step) > math.floor((total - n_bytes) / step) then
    n_evicted = n_evicted + trim_to_bytes(dead, keep_bytes)
  end
  -- record the new dead letter's cause only now, so that it is not deleted itself
  redis.pcall('ZADD', mistakes_of(dead), mistake_of(letter), id)
  if n_evicted > 0 then
    redis.pcall('HINCRBY', counters, 'dead_evicted', n_evicted)
  end
  return id
end
