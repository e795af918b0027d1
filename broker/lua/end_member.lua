-- Records that a member of a group has ended. A member that runs again counts only once.
--
-- KEYS     1 members
-- ARGV     message id of the member, ms to keep the group
-- Returns  number of members that have not ended, or -1 if the group does not exist, because its callbacks were
--          enqueued or it expired
--
-- Works when the server's memory is full, because Redis lets a script finish if its first write needs no memory.

local members = KEYS[1]
if redis.call('PEXPIRE', members, ARGV[2]) == 0 then
  return -1
end
redis.call('HSET', members, ARGV[1], '')
return redis.call('HGET', members, '=size') + 1 - redis.call('HLEN', members)
