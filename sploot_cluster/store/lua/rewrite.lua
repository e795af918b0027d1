-- Replaces all keys of a pet, however damaged they are, atomically.
--
-- KEYS     all keys of the pet
-- ARGV     sizes          as raw.lua returned them
--          new_commit     the name of the new state, which is also among the values to write; "" = none
--          then commands, each as the number of its arguments, its name, the number of its key, and its arguments
-- Returns  1 if the keys were written; also when a lost reply made the client send the same call again,
--          0 if the pet has changed since it was read

local new_commit = ARGV[2]
if new_commit ~= '' and redis.call('TYPE', KEYS[1]).ok == 'hash' and redis.call('HGET', KEYS[1], 'commit') == new_commit then
  return 1
end
if sizes() ~= ARGV[1] then
  return 0
end
-- a server that is out of memory refuses this first write, before anything is deleted
redis.call('SET', KEYS[14], '')
redis.call('UNLINK', unpack(KEYS))
local at = 3
while at <= #ARGV do
  local length = tonumber(ARGV[at])
  redis.call(ARGV[at + 1], KEYS[tonumber(ARGV[at + 2])], unpack(ARGV, at + 3, at + 2 + length))
  at = at + 3 + length
end
return 1
