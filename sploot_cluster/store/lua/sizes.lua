-- The first part of the scripts that repair a pet: the size of every key, whatever its type. O(1).

local SIZE_OF = {string = 'STRLEN', list = 'LLEN', hash = 'HLEN', stream = 'XLEN'}

-- Returns  the name of the last commit and the type and size of each key, as one string,
--          which changes whenever the pet changes
local function sizes()
  local seen = {}
  for i, key in ipairs(KEYS) do
    local kind = redis.call('TYPE', key).ok
    seen[i] = kind .. (SIZE_OF[kind] and redis.call(SIZE_OF[kind], key) or '')
    if i == 1 and kind == 'hash' then
      seen[i] = seen[i] .. (redis.call('HGET', key, 'commit') or '')
    end
  end
  -- ignore the stored tree and preview: they may expire or be replaced before the repair, which deletes both
  seen[14], seen[17] = '', ''
  return table.concat(seen, ' ')
end

