-- Appends the entries of events that are not there yet; each event with all of its entries.
--
-- KEYS  1 the stream, 2 how far the log that the events come from is written (only if they come from one),
--       then the sets of ids
-- ARGV  1 seconds for which ids are remembered, 2 seconds for which 2 is, 3 and 4 how the stream is trimmed ('' if not),
--       then for each event: where its set is in KEYS, id, where it ends in its log ('' if in none), number of
--       departments, number of words of its fields, the departments, the fields

-- All that can fail comes before the first write: what a script has written stays when it fails.
local stream, place = KEYS[1], KEYS[2]
for _, command in ipairs({
  { 'SADD', KEYS[#KEYS], '0' }, { 'XADD', stream, '*', '0', '0' }, { 'EXPIRE', KEYS[#KEYS], '1' }, { 'SET', place, '0' },
}) do
  if not redis.acl_check_cmd(unpack(command)) then
    error({ err = 'NOPERM ' .. command[1] .. ' is not allowed' })
  end
end
redis.call('XLEN', stream)
local written = tonumber(redis.call('GET', place) or '0')
for set = 3, #KEYS do
  redis.call('SCARD', KEYS[set])
end
local trim = ARGV[4]
if ARGV[3] == 'MINID' then
  local now = redis.call('TIME')
  trim = string.format('%.0f-0', math.max(0, now[1] * 1000 + math.floor(now[2] / 1000) - tonumber(ARGV[4])))
end

local at, added, last = 5, 0, ''
local touched = {}
while at <= #ARGV do
  local set, id, stop = KEYS[tonumber(ARGV[at])], ARGV[at + 1], ARGV[at + 2]
  local departments, words = tonumber(ARGV[at + 3]), tonumber(ARGV[at + 4])
  local fields = at + 5 + departments
  if not (stop ~= '' and tonumber(stop) <= written) and redis.call('SADD', set, id) == 1 then
    touched[set] = true
    for part = 0, math.max(1, departments) - 1 do
      local entry = { 'XADD', stream }
      if ARGV[3] ~= '' then
        entry[3], entry[4], entry[5] = ARGV[3], '~', trim
      end
      local n = #entry
      entry[n + 1], entry[n + 2], entry[n + 3] = '*', 'part', tostring(part)
      entry[n + 4], entry[n + 5] = 'parts', tostring(math.max(1, departments))
      n = n + 5
      if departments > 0 then
        entry[n + 1], entry[n + 2] = 'department', ARGV[at + 5 + part]
        n = n + 2
      end
      for word = 0, words - 1 do
        entry[n + 1 + word] = ARGV[fields + word]
      end
      redis.call(unpack(entry))
      added = added + 1
    end
  end
  if stop ~= '' then
    last = stop
  end
  at = fields + words
end
for set in pairs(touched) do
  redis.call('EXPIRE', set, ARGV[1])
end
if last ~= '' and tonumber(last) > written then
  redis.call('SET', place, last, 'EX', ARGV[2])
end
return added
