-- Finds entries that no consumer owns: orphans (delivered, in no pending list) and ghosts (pending, entry deleted).
-- Writes nothing.
--
-- KEYS     1 stream
-- ARGV     group, cursor ("-" at first), page size
-- Returns  {next cursor ("" = the pass is complete), {orphan ids}, {ghost id, consumer, deliveries, …}}

local stream = KEYS[1]
local group, cursor, page = ARGV[1], ARGV[2], tonumber(ARGV[3])

local last_delivered = last_delivered_id(stream, group)
if not last_delivered then
  return {'', {}, {}}
end

local orphans, ghosts, from = {}, {}, cursor
-- Collects the orphans in a range. Returns false if it stopped early because the page was full.
local function look(to)
  while from and #orphans < page do
    local entry = redis.call('XRANGE', stream, from, to, 'COUNT', 1)[1]
    if not entry then
      return true
    end
    orphans[#orphans + 1] = entry[1]
    from = behind(entry[1])
  end
  return not from
end

local pending = redis.call('XPENDING', stream, group, cursor, '+', page)
local is_complete = #pending < page
for _, one in ipairs(pending) do
  if not look('(' .. one[1]) then
    is_complete = false
    break
  end
  from = behind(one[1])
  if #redis.call('XRANGE', stream, one[1], one[1]) == 0 then
    ghosts[#ghosts + 1] = one[1]
    ghosts[#ghosts + 1] = one[2]
    ghosts[#ghosts + 1] = one[4]
  end
end
if is_complete then
  is_complete = look(last_delivered)
end
return {is_complete and '' or from or '', orphans, ghosts}
