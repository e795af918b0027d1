-- Pauses or resumes a queue, and wakes its janitors.
--
-- KEYS     1 paused  2 timer
-- ARGV     1 to pause, 0 to resume
-- Returns  OK

-- Operators must be able to pause a queue when the server's memory is full. Redis lets the script finish, because its
-- first write needs no memory.
redis.call('DEL', KEYS[1])
if ARGV[1] == '1' then
  redis.call('SET', KEYS[1], '1')
end
redis.pcall('XADD', KEYS[2], 'MAXLEN', 16, '*', 'paused', ARGV[1])
return 'OK'
