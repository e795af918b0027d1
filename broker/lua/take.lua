-- Takes over entries that have no live consumer: those that were handed back, and those of dead consumers.
--
-- KEYS     1 stream  2 consumers  3 suspects  4 counters
-- ARGV     group, consumer, consumer of handed-back entries, lease in ms, maximum number of entries, delivery limit,
--          1: consumers with an old heartbeat count as dead; 0: only consumers that were declared dead do,
--          largest entry in bytes (only the head of a larger one is returned), approximate limit on all bytes
-- Returns  a list of {id, delivery count, fields, crash count, is_doomed, is_recovered, size of the entry if it was
--          cut, otherwise 0}; is_doomed: it reached the delivery limit; is_recovered: it belonged to a dead consumer
--
-- A consumer is dead if it was declared dead (heartbeat 0) or has no heartbeat younger than the lease. In the latter
-- case, its entries must also have been idle for the lease time. So an entry that was claimed by hand is taken over
-- after this time. sweep.lua gives consumers that were created by hand an old heartbeat, so that this script need not
-- list all consumers. Ghosts are removed (Redis 6.2 keeps them).
--
-- The first crash while an entry is delivered does not count against it. From then on, start.lua records whether the
-- entry runs. The next crash while it runs counts fully. From then on, it runs in isolation, so that a further crash
-- can be attributed to it. If isolation times out because a message runs for longer than the lease, a crash counts as a
-- quarter, so that a message that kills its workers still reaches the limit.

local stream, consumers, suspects, counters = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local group, me, handed_back = ARGV[1], ARGV[2], ARGV[3]
local lease, room, limit, believe_stale = tonumber(ARGV[4]), tonumber(ARGV[5]), tonumber(ARGV[6]), ARGV[7] == '1'

-- Maximum number of ghosts to remove in one call. A queue whose entries were trimmed may have any number of ghosts.
local MOST_GHOSTS = 2000

local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
-- A server whose memory is full lets a script finish if its first write needs no memory.
redis.pcall('HDEL', suspects, '')
if redis.pcall('XPENDING', stream, group, '-', '+', 1).err then -- the group no longer exists
  return {}
end

local longest, budget = tonumber(ARGV[8]), tonumber(ARGV[9])
local taken, n_recovered, n_ghosts, n_bytes = {}, 0, 0, 0

local function noted(id)
  local found = redis.pcall('HGET', suspects, id)
  return type(found) == 'string' and found or '0'
end

local function charge(id, owner, deliveries)
  local charges, ran = string.match(noted(id), '^(%S+)(.*)$')
  if ran == '' then
    return tonumber(charges)
  end
  local alone = ' ' .. deliveries .. ' ' .. owner
  charges = tonumber(charges)
  if ran == alone or (ran == alone .. ' alongside others' and charges == 0) then
    charges = charges + 1
  elseif ran == alone .. ' alongside others' then
    charges = charges + 0.25
  end
  redis.pcall('HSET', suspects, id, charges)
  return charges
end

local function take_from(owner, min_idle)
  while #taken < room and n_ghosts < MOST_GHOSTS and n_bytes < budget do
    local pending = redis.call('XPENDING', stream, group, 'IDLE', min_idle, '-', '+', room - #taken, owner)
    if #pending == 0 then
      return
    end
    for _, found in ipairs(pending) do
      if n_bytes >= budget then
        return
      end
      local id, deliveries = found[1], found[4]
      local entry = redis.call('XRANGE', stream, id, id)[1]
      if not entry then
        redis.call('XACK', stream, group, id)
        redis.pcall('HDEL', suspects, id)
        n_ghosts = n_ghosts + 1
      else
        local is_recovered = owner ~= handed_back
        local charges = is_recovered and charge(id, owner, deliveries)
          or tonumber(string.match(noted(id), '^%S+'))
        local is_doomed = charges >= 1 and charges + 1 >= limit
        redis.call('XCLAIM', stream, group, me, 0, id, 'RETRYCOUNT', deliveries + 1, 'JUSTID')
        local fields, kept, cut = head_of(entry[2], longest)
        n_bytes = n_bytes + kept
        taken[#taken + 1] = {id, deliveries + 1, fields, charges, is_doomed and 1 or 0, is_recovered and 1 or 0, cut}
        if is_recovered then
          n_recovered = n_recovered + 1
        end
      end
    end
  end
end

take_from(handed_back, 0)
local function take_from_all(from, to, min_idle)
  for _, name in ipairs(redis.call('ZRANGEBYSCORE', consumers, from, to)) do
    if name ~= me then
      take_from(name, min_idle)
    end
  end
end
take_from_all(0, 0, 0)
if believe_stale then
  take_from_all('(0', '(' .. (now - lease), lease)
end

if n_recovered > 0 then
  redis.pcall('HINCRBY', counters, 'recovered', n_recovered)
end
if n_ghosts > 0 then
  redis.pcall('HINCRBY', counters, 'ghosts', n_ghosts)
end
return taken
