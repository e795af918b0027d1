-- Functions that add dead letters and bound them. Included at the top of scripts.

-- The bound in bytes is checked once per this share of it, because measuring takes the server up to 0.1 µs per dead letter.
local CHECKS_PER_BOUND = 64

-- Deletes the oldest dead letters until the stream needs at most ``keep_bytes`` of memory, but never the newest one.
-- Does nothing if the caller's user may not measure memory. Returns how many were deleted.
local function trim_to_bytes(dead, keep_bytes)
  local n_deleted = 0
  for _ = 1, 10 do
    local n_bytes, n = redis.pcall('MEMORY', 'USAGE', dead, 'SAMPLES', 0), redis.call('XLEN', dead)
    if type(n_bytes) ~= 'number' or n_bytes <= keep_bytes or n <= 1 then
      break
    end
    -- dead letters differ in size, so one step may delete too few
    local n_trimmed = redis.call('XTRIM', dead, 'MAXLEN', '~', math.max(1, math.floor(n * keep_bytes / n_bytes)))
    n_deleted = n_deleted + n_trimmed
    if n_trimmed == 0 then
      break
    end
  end
  return n_deleted
end

-- Adds a dead letter, given as names and values, and returns its id. Deletes the oldest ones beyond the bounds; those
-- that are deleted before their time are counted as ``dead_evicted``.
local function add_dead_letter(dead, counters, letter, now, keep_ms, keep_n, keep_bytes)
  local id = redis.call('XADD', dead, '*', unpack(letter))
  redis.call('XTRIM', dead, 'MINID', '~', string.format('%d', math.max(0, now - keep_ms)))
  local n_evicted = redis.call('XTRIM', dead, 'MAXLEN', '~', keep_n)
  local n_bytes = 0
  for _, part in ipairs(letter) do
    n_bytes = n_bytes + #part
  end
  local total, step = redis.pcall('HINCRBY', counters, 'dead_bytes', n_bytes), math.ceil(keep_bytes / CHECKS_PER_BOUND)
  total = tonumber(total) or n_bytes
  if math.floor(total / step) > math.floor((total - n_bytes) / step) then
    n_evicted = n_evicted + trim_to_bytes(dead, keep_bytes)
  end
  if n_evicted > 0 then
    redis.pcall('HINCRBY', counters, 'dead_evicted', n_evicted)
  end
  redis.pcall('HINCRBY', counters, 'dead', 1)
  return id
end
