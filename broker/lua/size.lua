-- Counts the messages of a queue: waiting, in flight, delayed, and in line behind an ordering key.
--
-- KEYS     1 stream  2 delayed  3 ordered:line
-- Returns  the number; in-flight entries are still in the stream

return redis.call('XLEN', KEYS[1]) + redis.call('ZCARD', KEYS[2]) + redis.call('ZCARD', KEYS[3])
