-- ARGV: id, window (d or m and its name), and for each kind what is added and what is taken away (6).
-- Answers 1 if it was done, 0 if there is anything of that id.
local account, id = accounts[1], ARGV[5]
if redis.call('HEXISTS', account.leases, id) == 1 then
  return 0
end
local names = {ARGV[6] .. ':rs', ARGV[6] .. ':ts', ARGV[6] .. ':cs'}
local counts = redis.call('HMGET', account.counters, unpack(names))
for at = 1, 3 do
  counted(counts[at])
end
bury(account, id)
for at = 1, 3 do
  change(account, names[at], counts[at], ARGV[5 + at * 2], ARGV[6 + at * 2])
end
redis.call('PEXPIRE', account.counters, KEPT_UNUSED)
return 1
