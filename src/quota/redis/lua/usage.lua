-- ARGV: the table of days. Answers as the reservation does: 'off' and the time, or 'found', the time, the row and the
-- counters.
local row, date, month = pick(5)
if not row then
  return {'off', now}
end
local names = fields(date, month)
names[13] = 'known'
return {'found', now, row, redis.call('HMGET', accounts[1].counters, unpack(names))}
