-- Pauses or resumes a queue, and wakes its janitors.
--
-- KEYS     1 paused  2 timer
-- ARGV     1 to pause, 0 to resume
-- Returns  OK

-- The first write needs no memory, so that a full server lets the script finish: operators must be able to act then.
redis.call('DEL', KEYS[1])
if ARGV[1] == '1' then
  redis.call('SET', KEYS[1], '1')
end
redis.call('XADD', KEYS[2], 'MAXLEN', 1, '*', 'paused', ARGV[1])
return 'OK'
