-- Notes that a member of a group has ended. A member that runs again is the same member.
--
-- KEYS     1 members
-- ARGV     message id of the member, ms to keep the group
-- Returns  how many members are left, or -1 if there is no group: its callbacks were enqueued, or it expired
--
-- Works when the server's memory is full, because Redis lets a script finish if its first write needs no memory.

local members = KEYS[1]
if redis.call('PEXPIRE', members, ARGV[2]) == 0 then
  return -1
end
redis.call('HSET', members, ARGV[1], '')
return redis.call('HGET', members, '=size') + 1 - redis.call('HLEN', members)
