-- Starts a group: stores the number of members that must end before its callbacks run.
--
-- KEYS     1 members
-- ARGV     number of members, ms to keep the group
-- Returns  1, or 0 if the group was started before

if redis.call('HSETNX', KEYS[1], '=size', ARGV[1]) == 0 then
  return 0
end
redis.call('PEXPIRE', KEYS[1], ARGV[2])
return 1
