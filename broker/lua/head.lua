-- Of an entry that is too large, the head: no caller is sent more than it can hold. Included at the top of scripts that
-- return entries.

local HEAD, MOST_PARTS = 4096, 4100 -- bytes of a string, names and values of an entry; a dead letter has some of its own

-- The fields of an entry, how many bytes they have, and 0; of one longer than allowed their heads, how many bytes these
-- have, and how many bytes it has.
local function head_of(fields, longest)
  local n = 0
  for i = 1, #fields do
    n = n + #fields[i]
  end
  if n <= longest and #fields <= MOST_PARTS then
    return fields, n, 0
  end
  local head, kept = {}, 0
  for i = 1, math.min(#fields, MOST_PARTS) do
    head[i] = string.sub(fields[i], 1, math.min(HEAD, math.max(0, longest - kept)))
    kept = kept + #head[i]
  end
  return head, kept, n
end

