-- Cancels one message: removes it and frees its unique key and its turn, or marks it if a worker may be running it.
--
-- KEYS     1–9 work  10 cancelled  11 suspects  12 counters  13 consumers  14 unique key of the message (optional)
-- ARGV     group, place of the message (entry id, name in delayed or member of the line), message id,
--          key ("" = none; see work.lua),
--          consumer and delivery count, if the worker that holds the message cancels it (otherwise "" and any number),
--          consumer of handed-back entries, lease in ms,
--          SHA-1 of the coalesced message that the caller knows ("" = none), 1: drop the coalesced message or 0:
--          enqueue it, with: its name in delayed, key ("" = none) and limits, message id, ms after which its unique
--          lock ends
-- Returns  {CANCELLED}             the message was removed
--          {MARKED}                a live worker has received it and will interrupt or skip it
--          {GONE}                  no message is at this place
--          {FENCED}                the worker no longer holds the message
--          {COALESCED, message}    nothing was done, because the caller does not know this message, which was coalesced
--                                  onto the one to cancel
--
-- A worker enqueues the coalesced message itself, before it ends a cancelled one.
-- Works when the server's memory is full, because Redis lets a script finish if its first write needs no memory.

local stream, cancelled, suspects, counters, consumers = KEYS[1], KEYS[10], KEYS[11], KEYS[12], KEYS[13]
local unique = KEYS[14]
local group, where, message_id, key = ARGV[1], ARGV[2], ARGV[3], ARGV[4]
local worker, deliveries, handed_back, lease = ARGV[5], tonumber(ARGV[6]), ARGV[7], tonumber(ARGV[8])
local seen, is_dropped = ARGV[9], ARGV[10] == '1'

redis.call('ZREM', work.delayed, '')
local is_entry = string.find(where, '^%d+%-%d+$') ~= nil
if not is_there(where) then
  redis.call('HDEL', cancelled, where)
  if worker ~= '' then
    redis.pcall('XACK', stream, group, where)
    leave_work(key, where)
  end
  return {'GONE'}
end

local coalesced = false
if unique and worker == '' then
  coalesced = in_holders('+' .. message_id)
  if coalesced and redis.sha1hex(coalesced) ~= seen then
    return {'COALESCED', coalesced}
  end
end

if is_entry then
  local pending = redis.pcall('XPENDING', stream, group, where, where, 1)
  local owner = not pending.err and pending[1] and pending[1][2]
  if worker ~= '' then
    if owner ~= worker or pending[1][4] ~= deliveries then
      redis.pcall('HINCRBY', counters, 'fenced', 1)
      return {'FENCED'}
    end
  elseif owner and owner ~= handed_back then
    local beat = tonumber(redis.call('ZSCORE', consumers, owner) or 0)
    if beat > 0 and beat >= server_ms() - lease then
      redis.call('HSET', cancelled, where, coalesced and is_dropped and seen or '')
      redis.pcall('XADD', work.timer, 'MAXLEN', 16, '*', 'cancelled', where)
      return {'MARKED'}
    end
  end
end

local due = 0
if is_entry then
  redis.pcall('XACK', stream, group, where)
  redis.pcall('HINCRBY', counters, 'removed', redis.call('XDEL', stream, where))
  redis.pcall('HDEL', suspects, where)
  redis.call('HDEL', cancelled, where)
elseif redis.call('ZSCORE', work.line, where) then
  due = tonumber(string.match(redis.call('HGET', work.in_line, where) or '0 ', '^%d+'))
  redis.call('ZREM', work.line, where)
  redis.call('HDEL', work.in_line, where)
else
  due = tonumber(redis.call('ZSCORE', work.delayed, where))
  redis.call('ZREM', work.delayed, where)
  redis.call('HDEL', work.messages, where)
end
if unique then
  unlock(unique, message_id, where)
end
redis.pcall('HINCRBY', counters, 'cancelled', 1)

if coalesced and not is_dropped then
  local name, its_key, its_limits, its_id, lock_ms = ARGV[11], ARGV[12], ARGV[13], ARGV[14], ARGV[15]
  local holder = holder_of(unique)
  if holder then
    if not in_holders('+' .. holder) then
      redis.pcall('HSET', work.holders, '+' .. holder, coalesced)
    end
  else
    local its_place = name
    if its_key ~= '' and (due <= server_ms() or is_ordering(its_key)) then
      its_place = arrive(its_key, name, due, coalesced, its_limits)
    elseif due > server_ms() then
      put_off(name, due, coalesced)
    else
      its_place = add_to_stream(name, coalesced)
    end
    redis.pcall('HINCRBY', counters, 'enqueued', 1)
    take_lock(unique, its_id, lock_ms, its_place)
  end
end
if key ~= '' then
  leave_work(key, where)
end
return {'CANCELLED'}
