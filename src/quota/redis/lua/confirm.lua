-- ARGV: id, milliseconds until it expires. What is pending is reserved from now on, in all departments or in none.
-- Answers 1, or 0 if it is neither pending nor reserved any more in one of them.
local id, hold = ARGV[5], in_millis(ARGV[6])
for _, account in ipairs(accounts) do
  account.lease = redis.call('HGET', account.leases, id) or 'none'
  local state = string.sub(account.lease, 1, 1)
  if state ~= 'p' and state ~= 'r' then
    return 0
  end
end
for _, account in ipairs(accounts) do
  if string.sub(account.lease, 1, 1) == 'p' then
    keep(account, id, 'r' .. string.sub(account.lease, 2), hold)
  end
  redis.call('HSETNX', account.counters, 'known', '1')
end
return 1
