-- Requeues the orphans around one page of pending entries. Orphans are entries that were delivered and are in no
-- pending list; a manual XACK, XCLAIM with FORCE or XGROUP DELCONSUMER leaves them behind.
--
-- KEYS     1 stream  2 consumers  3 dead  4 timer  5 suspects  6 counters  7 swept
-- ARGV     group, consumer of handed-back entries, cursor ("-" at first), page size, ms to keep dead letters,
--          ms after which an idle consumer without entries is removed, ms between two passes, by whichever process
-- Returns  {next cursor ("" = the pass is complete), number of orphans found, ms until the next pass is due (0 = this
--          pass
--           continues)}. A full page of orphans ends a call, too
--
-- Only one process makes a pass. If it dies, another process makes the next pass.
-- Settled entries are removed from the stream. So every entry up to the last delivered one is either pending or an
-- orphan, and all entries between two consecutive pending ids are orphans. Only the payloads of orphans are read.

local stream, consumers, dead, timer, suspects, counters = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5], KEYS[6]
local group, handed_back, cursor, page = ARGV[1], ARGV[2], ARGV[3], tonumber(ARGV[4])
local keep_ms, forget_ms = tonumber(ARGV[5]), tonumber(ARGV[6])

if cursor == '-' then
  -- A server whose memory is full lets a script finish if its first write needs no memory.
  redis.pcall('HDEL', suspects, '')
  if not redis.call('SET', KEYS[7], '1', 'NX', 'PX', ARGV[7]) then
    return {'', 0, math.max(1, redis.call('PTTL', KEYS[7]))}
  end
end

local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)

local function forget_silent(from, holds)
  for _, name in ipairs(redis.call('ZRANGEBYSCORE', consumers, from, '(' .. (now - forget_ms))) do
    if not holds[name] then
      redis.call('ZREM', consumers, name)
    end
  end
end

local last_delivered = last_delivered_id(stream, group)
if not last_delivered then
  -- keep consumers that were declared dead: after a manual SETID 0, they may hold entries
  forget_silent('(0', {})
  return {'', 0, 0}
end

local n_orphans, from = 0, cursor
-- Requeues all entries in a range. Returns false if it stopped early because the page was full.
local function adopt(to)
  while from and n_orphans < page do
    local entry = redis.call('XRANGE', stream, from, to, 'COUNT', 1)[1]
    if not entry then
      return true
    end
    redis.call('XCLAIM', stream, group, handed_back, 0, entry[1], 'FORCE', 'RETRYCOUNT', 1, 'JUSTID')
    n_orphans = n_orphans + 1
    from = behind(entry[1])
  end
  return not from
end

local pending = redis.call('XPENDING', stream, group, cursor, '+', page)
local is_complete = #pending < page
for _, one in ipairs(pending) do
  if not adopt('(' .. one[1]) then
    is_complete = false
    break
  end
  from = behind(one[1])
end
if is_complete then
  is_complete = adopt(last_delivered)
end
local next_cursor = is_complete and '' or from or ''

if n_orphans > 0 then
  redis.pcall('HINCRBY', counters, 'orphaned', n_orphans)
  redis.pcall('XADD', timer, 'MAXLEN', 16, '*', 'orphans', n_orphans)
end
if next_cursor == '' then
  redis.call('XTRIM', dead, 'MINID', '~', string.format('%d', math.max(0, now - keep_ms)))
  if redis.call('XLEN', stream) == 0 then
    -- no entry is pending, so the remaining records belong to entries that were deleted by hand while they ran
    redis.call('DEL', suspects)
  end
  local holds = {}
  for _, consumer in ipairs(redis.call('XINFO', 'CONSUMERS', stream, group)) do
    local name, n_pending, idle = consumer[2], consumer[4], consumer[6]
    local beat = redis.call('ZSCORE', consumers, name)
    -- a consumer that reads is not declared dead, but a reply to it may still be in transit
    if n_pending > 0 or (beat == '0' and idle < 60000) then
      holds[name] = true
      if not beat and name ~= handed_back then
        -- this consumer was created by hand, and its entries are taken over when they have been idle for the lease time
        redis.call('ZADD', consumers, 1, name)
        redis.pcall('XADD', timer, 'MAXLEN', 16, '*', 'unknown', name)
      end
    elseif beat == '0' or (not beat and idle > forget_ms) then
      redis.call('XGROUP', 'DELCONSUMER', stream, group, name)
    end
  end
  forget_silent('-inf', holds)
end
return {next_cursor, n_orphans, 0}
