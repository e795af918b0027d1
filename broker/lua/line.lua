-- A function for the line of messages that wait for the limits of their keys. work.lua describes its members. Included
-- at the top of scripts that only read the line.

-- Returns the lowest place in line of a key's messages, whatever their rank, or nil if none waits.
local function oldest_place(line, key)
  local oldest, start = nil, '[' .. key .. '\0'
  while true do
    local member = redis.call('ZRANGEBYLEX', line, start, '(' .. key .. '\1', 'LIMIT', 0, 1)[1]
    if not member then
      return oldest
    end
    local rank, place = string.match(string.sub(member, #key + 2), '^(.*)(' .. string.rep('%d', 16) .. ')$')
    oldest = math.min(oldest or tonumber(place), tonumber(place))
    if rank == '' then
      return oldest
    end
    start = '(' .. key .. '\0' .. rank .. ':'
  end
end

