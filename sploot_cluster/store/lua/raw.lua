-- Reads all keys of a pet as they are, damaged or not, as a consistent snapshot.
--
-- KEYS     all keys of the pet
-- ARGV     1 = also return the vectors, which can be large; 0 = do not
-- Returns  the sizes of all keys, as rewrite.lua compares them, then for each key its type and its value: text, list,
--          field, value, …, or stream entries; "" for a type that no key of a pet has

local answer = {sizes()}
for i, key in ipairs(KEYS) do
  local kind = redis.call('TYPE', key).ok
  local value = ''
  local is_left_out = ARGV[1] == '0' and (i == 4 or i == 16)
  if is_left_out then
    value = kind == 'string' and '' or {}
  elseif kind == 'string' then
    value = redis.call('GET', key)
  elseif kind == 'list' then
    value = redis.call('LRANGE', key, 0, -1)
  elseif kind == 'hash' then
    value = redis.call('HGETALL', key)
  elseif kind == 'stream' then
    value = redis.call('XRANGE', key, '-', '+')
  end
  answer[#answer + 1] = kind
  answer[#answer + 1] = value
end
return answer
