-- Counts the messages of a queue: waiting, in flight, delayed and in line.
--
-- KEYS     1 stream  2 delayed  3 ordered:line
-- Returns  the number; the stream includes the in-flight entries

return redis.call('XLEN', KEYS[1]) + redis.call('ZCARD', KEYS[2]) + redis.call('ZCARD', KEYS[3])
