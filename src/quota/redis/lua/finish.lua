-- ARGV: how (settle, release, or cancel, which ends only what is pending), id, what was used up (3).
-- Answers for each department 'first', 'true-up' or 'none'.
local how, id = ARGV[5], ARGV[6]
local truth = {ARGV[7], ARGV[8], ARGV[9]}
for _, account in ipairs(accounts) do
  account.lease = find(account, id)
end
local answer = {}
for at, account in ipairs(accounts) do
  local lease = account.lease
  local state = lease and lease.state
  answer[at] = 'none'
  if state == 'p' or (state == 'r' and how ~= 'cancel') then
    forget(account, id)
    replace(account, lease, lease.reserved, truth, NOTHING)
    answer[at] = 'first'
  elseif state == 'x' and how ~= 'cancel' then
    forget(account, id)
    replace(account, lease, NOTHING, truth, lease.on_expiry)
    answer[at] = 'true-up'
  elseif not state and how == 'release' then
    bury(account, id)
  end
end
return answer
