-- ARGV: date, month, and for each kind what is added and what is taken away: in the day (6), in the month (6).
-- Answers 1 if it was done, 0 if the department is known.
local account = accounts[1]
local names = fields(ARGV[5], ARGV[6])
names[13] = 'known'
local counts = redis.call('HMGET', account.counters, unpack(names))
if counts[13] then
  return 0
end
for at = 1, 12 do
  counted(counts[at])
end
redis.call('HSET', account.counters, 'known', '1')
for counter = 1, 6 do
  local at = counter * 2 - 1
  change(account, names[at], counts[at], ARGV[5 + counter * 2], ARGV[6 + counter * 2])
end
redis.call('PEXPIRE', account.counters, KEPT_UNUSED)
return 1
