-- How far a consumer group has come. Included at the top of scripts that look for what nobody works on.

-- The start of a range behind an id; nil where no id is greater, as behind one that a producer chose to exhaust a stream.
local function behind(id)
  if id ~= '18446744073709551615-18446744073709551615' then
    return '(' .. id
  end
end

-- The last id that was delivered; nil where there is no such stream, no such group, or nothing was delivered yet.
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

