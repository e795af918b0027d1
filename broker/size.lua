-- How much work a queue holds: waiting, in flight and delayed.
--
-- KEYS     1 stream  2 delayed
-- Returns  the number; in-flight entries are still in the stream

return redis.call('XLEN', KEYS[1]) + redis.call('ZCARD', KEYS[2])
