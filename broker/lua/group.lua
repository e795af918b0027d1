-- Functions for positions in a stream and in its consumer group. Included at the top of scripts that scan entries.

-- Returns the start of the range after an id, or nil after the greatest possible id, which a producer may have chosen.
local function behind(id)
  if id ~= '18446744073709551615-18446744073709551615' then
    return '(' .. id
  end
end

-- Returns the last delivered id, or nil if the stream or group does not exist or no entry was delivered yet.
local function last_delivered_id(stream, group)
  local groups = redis.pcall('XINFO', 'GROUPS', stream)
  if groups.err then
    return nil
  end
  for _, one in ipairs(groups) do
    local facts = {}
    for i = 1, #one, 2 do
      facts[one[i]] = one[i + 1]
    end
    if facts['name'] == group and facts['last-delivered-id'] ~= '0-0' then
      return facts['last-delivered-id']
    end
  end
end

