-- ARGV: id, milliseconds from now until it expires. Answers 1 if it is reserved in all departments, or else 0.
local id, hold = ARGV[5], in_millis(ARGV[6])
local is_held = 1
for _, account in ipairs(accounts) do
  account.lease = redis.call('HGET', account.leases, id)
end
for _, account in ipairs(accounts) do
  local lease = account.lease
  if lease and string.sub(lease, 1, 1) == 'r' then
    redis.call('ZADD', account.expiries, 'XX', 'GT', hold, id)
  else
    is_held = 0
  end
end
return is_held
