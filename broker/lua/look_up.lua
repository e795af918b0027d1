-- Reads the data of dead letters that a requeue needs: their size and their unique key. Writes nothing.
--
-- KEYS     1 dead
-- ARGV     ids of dead letters
-- Returns  per dead letter {size of its entry in bytes, its unique key ("" = none)}; {-1, ""} if it does not exist
--
-- The size of a Dramatiq message is the size of its only value, as when it was enqueued. The size of any other entry
-- includes all fields.

local found = {}
for i, id in ipairs(ARGV) do
  local letter = redis.call('XRANGE', KEYS[1], id, id)[1]
  found[i] = {-1, ''}
  if letter then
    local n_bytes, n_fields, message, unique_key = 0, 0, nil, ''
    for j = 1, #letter[2], 2 do
      local name, value = letter[2][j], letter[2][j + 1]
      if name == 'unique_key' then
        unique_key = value
      elseif string.sub(name, 1, 6) == 'entry:' then
        n_fields = n_fields + 1
        n_bytes = n_bytes + #name - 6 + #value
        if name == 'entry:message' then
          message = value
        end
      end
    end
    found[i] = {message and n_fields == 1 and #message or n_bytes, unique_key}
  end
end
return found
