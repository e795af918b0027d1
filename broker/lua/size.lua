-- Counts a queue's messages: waiting, in flight, delayed and in line.
--
-- KEYS     1 stream  2 delayed  3 ordered:line
-- Returns  number of messages. The stream includes the entries in flight

return redis.call('XLEN', KEYS[1]) + redis.call('ZCARD', KEYS[2]) + redis.call('ZCARD', KEYS[3])
