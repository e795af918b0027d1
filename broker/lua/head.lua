-- A function that cuts entries that are too large to their heads, so that callers get no more data than they can hold.
-- Included at the top of scripts that return entries.

-- Maximum numbers of bytes per string, and of names and values per entry, including those that a dead letter adds.
local HEAD, MOST_PARTS = 4096, 4100

-- Returns the fields of an entry, their size in bytes, and 0. For an entry larger than allowed, returns the heads of
-- its fields, their size, and the size of the whole entry.
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

