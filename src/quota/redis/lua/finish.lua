-- ARGV: how (settle, release, or cancel, which ends only what is pending), id, what was used up (3).
-- Answers 'first', 'true-up' or 'none': the first that is true of any department.
local how, id = ARGV[5], ARGV[6]
local truth = {ARGV[7], ARGV[8], ARGV[9]}
for _, account in ipairs(accounts) do
  account.lease = find(account, id)
end
local is_first, is_true_up = false, false
for _, account in ipairs(accounts) do
  local lease = account.lease
  local state = lease and lease.state
  if state == 'p' or (state == 'r' and how ~= 'cancel') then
    forget(account, id)
    replace(account, lease, lease.reserved, truth, NOTHING)
    is_first = true
  elseif state == 'x' and how ~= 'cancel' then
    forget(account, id)
    replace(account, lease, NOTHING, truth, lease.on_expiry)
    is_true_up = true
  elseif not state and how == 'release' then
    bury(account, id)
  end
end
return is_first and 'first' or is_true_up and 'true-up' or 'none'
