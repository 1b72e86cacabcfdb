-- In front of every step. KEYS: for each department its counters (a hash), leases (a hash) and expiries (a sorted set).
-- ARGV: milliseconds to add to the clock; how many leases are swept; for how long an ended and an expired one is
-- remembered; then what the step takes.
--
-- A lease is 'state date month requests tokens cost requests tokens cost': what is reserved, and what is charged on expiry.
-- States: r reserved, p pending (of a reservation in several slots), x expired, e ended (only the state).
-- Amounts are text throughout. Lua's numbers hold no more than 2^53 exactly.

local NINE_DIGITS = 1000000000
local MOST, MOST_HIGH, MOST_LOW = '9223372036854775807', 9223372036, 854775807
local NOTHING = {'0', '0', '0'}
-- Of a department that nobody uses. Longer than the current month and the last.
local KEPT_UNUSED = '17280000000'

-- Rights may be taken away while calls are made. What would be refused after the first write is refused before it: what a
-- script has written stays.
for _, name in ipairs({'HSET', 'HSETNX', 'HINCRBY', 'HKEYS', 'HDEL', 'ZADD', 'ZREM', 'ZCARD', 'PEXPIRE'}) do
  if not redis.acl_check_cmd(name, KEYS[1], '0', '0') then
    error({err = 'NOPERM ' .. name .. ' is not allowed'})
  end
end

local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000) + tonumber(ARGV[1])

local accounts = {}
for at = 1, #KEYS, 3 do
  accounts[#accounts + 1] = {counters = KEYS[at], leases = KEYS[at + 1], expiries = KEYS[at + 2]}
end

local function in_millis(from_now)
  return string.format('%.0f', now + tonumber(from_now))
end

-- A count as its last nine digits and those in front of them.
local function parts(count)
  if not count or count == '0' then
    return 0, 0
  end
  if not string.find(count, '^[1-9]%d*$') then
    error({err = 'QUOTA a counter is not a count'})
  end
  if #count <= 9 then
    return 0, tonumber(count)
  end
  return tonumber(string.sub(count, 1, -10)), tonumber(string.sub(count, -9))
end

-- A counter, which is never more than the most.
local function counted(count)
  local high, low = parts(count)
  if high > MOST_HIGH or (high == MOST_HIGH and low > MOST_LOW) then
    error({err = 'QUOTA a counter is more than the most'})
  end
  return high, low
end

-- The counters of a day and its month: of requests, tokens and cost each what is settled and what is reserved.
local function fields(date, month)
  local names = {}
  for _, window in ipairs({'d' .. date, 'm' .. month}) do
    for _, counter in ipairs({':rs', ':rr', ':ts', ':tr', ':cs', ':cr'}) do
      names[#names + 1] = window .. counter
    end
  end
  return names
end

-- The row of the table of days that now is in, as date and month; its number; and what comes after the table.
local function pick(at)
  local rows = tonumber(ARGV[at])
  local after = at + 1 + rows * 4
  for row = 1, rows do
    local from = at + 1 + (row - 1) * 4
    if tonumber(ARGV[from]) <= now and now < tonumber(ARGV[from + 1]) then
      return row, ARGV[from + 2], ARGV[from + 3], after
    end
  end
  return nil, nil, nil, after
end

-- A lease, and the counters that it is in: all that is read of it, before anything is written.
local function find(account, id)
  local text = redis.call('HGET', account.leases, id)
  if not text then
    return nil
  end
  local words = {}
  for word in string.gmatch(text, '%S+') do
    words[#words + 1] = word
  end
  local lease = {text = text, state = words[1]}
  if lease.state ~= 'e' then
    if not string.find(text, '^[rpx] %d+ %d+ %d+ %d+ %d+ %d+ %d+ %d+$') then
      error({err = 'QUOTA a lease is not a lease'})
    end
    lease.reserved = {words[4], words[5], words[6]}
    lease.on_expiry = {words[7], words[8], words[9]}
    lease.fields = fields(words[2], words[3])
    lease.counts = redis.call('HMGET', account.counters, unpack(lease.fields))
    for at = 1, 12 do
      counted(lease.counts[at])
    end
  end
  return lease
end

-- Adds to a counter and takes away, at once: it stays between nothing and the most.
local function change(account, field, count, plus, minus)
  if plus == minus then
    return
  end
  local high, low = parts(count)
  local plus_high, plus_low = parts(plus)
  local minus_high, minus_low = parts(minus)
  high, low = high + plus_high - minus_high, low + plus_low - minus_low
  high, low = high + math.floor(low / NINE_DIGITS), low % NINE_DIGITS
  if high < 0 then
    redis.call('HSET', account.counters, field, '0')
  elseif high > MOST_HIGH or (high == MOST_HIGH and low > MOST_LOW) then
    redis.call('HSET', account.counters, field, MOST)
  else
    -- In this order neither overflows. There is no '-0'.
    if minus ~= '0' then
      redis.call('HINCRBY', account.counters, field, '-' .. minus)
    end
    if plus ~= '0' then
      redis.call('HINCRBY', account.counters, field, plus)
    end
  end
end

-- In the windows of a lease: takes out of what is reserved, adds to what is settled, and takes out of that.
local function replace(account, lease, reserved, plus, minus)
  for at = 1, 12, 2 do
    local kind = (at - 1) / 2 % 3 + 1
    change(account, lease.fields[at], lease.counts[at], plus[kind], minus[kind])
    change(account, lease.fields[at + 1], lease.counts[at + 1], '0', reserved[kind])
  end
end

local function forget(account, id)
  redis.call('HDEL', account.leases, id)
  redis.call('ZREM', account.expiries, id)
end

local function keep(account, id, text, expires_at)
  redis.call('HSET', account.leases, id, text)
  redis.call('ZADD', account.expiries, expires_at, id)
  if redis.call('ZCARD', account.expiries) == 1 then
    redis.call('PEXPIRE', account.leases, KEPT_UNUSED)
    redis.call('PEXPIRE', account.expiries, KEPT_UNUSED)
  end
end

local function bury(account, id)
  keep(account, id, 'e', in_millis(ARGV[3]))
end

for _, account in ipairs(accounts) do
  local due = redis.call('ZRANGE', account.expiries, '-inf', in_millis(0), 'BYSCORE', 'LIMIT', '0', ARGV[2])
  for _, id in ipairs(due) do
    local lease = find(account, id)
    if lease and lease.state == 'r' then
      redis.call('HSET', account.leases, id, 'x' .. string.sub(lease.text, 2))
      redis.call('ZADD', account.expiries, in_millis(ARGV[4]), id)
      replace(account, lease, lease.reserved, lease.on_expiry, NOTHING)
    else
      forget(account, id)
      if lease and lease.state == 'p' then
        replace(account, lease, lease.reserved, NOTHING, NOTHING)
      end
    end
  end
end
