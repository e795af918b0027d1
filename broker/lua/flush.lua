-- Deletes the queue's waiting, in-flight, delayed and in-line messages. The group and its consumers are kept.
--
-- KEYS     1 stream  2 counters  3 delayed  4 ordered:line  5… other keys to delete
-- ARGV     group
-- Returns  number of messages that were deleted

local stream, group = KEYS[1], ARGV[1]

local n = redis.call('XLEN', stream) + redis.call('ZCARD', KEYS[3]) + redis.call('ZCARD', KEYS[4])
redis.call('DEL', unpack(KEYS, 3))
redis.pcall('HINCRBY', KEYS[2], 'removed', redis.call('XTRIM', stream, 'MAXLEN', 0))
while true do
  local pending = redis.pcall('XPENDING', stream, group, '-', '+', 500)
  if pending.err or #pending == 0 then
    return n
  end
  for _, one in ipairs(pending) do
    redis.call('XACK', stream, group, one[1])
  end
end
