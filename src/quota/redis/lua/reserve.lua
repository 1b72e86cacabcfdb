-- ARGV: id, state to begin in (r, or p), milliseconds until it expires, what is reserved (3), what is charged on expiry
-- (3), whether departments have to be known, the table of days (rows, then from, until, date, month of each), and for
-- each department its limits in the order of the counters (6).
-- Answers 'off' and the time; or what became of it, the time, the row, and for each department its counters, whether it
-- is known, the last month, and the state of its lease.
local id, state, hold = ARGV[5], ARGV[6], in_millis(ARGV[7])
local amount = {ARGV[8], ARGV[9], ARGV[10]}
local row, date, month, limits = pick(15)
if not row then
  return {'off', now}
end

local names = fields(date, month)
names[13], names[14] = 'known', 'month'
local answer, is_ended, is_unseeded, fits = {'granted', now, row}, false, false, true
local wanted = {}
for kind = 1, 3 do
  wanted[kind] = {parts(amount[kind])}
end
for at, account in ipairs(accounts) do
  local counts = redis.call('HMGET', account.counters, unpack(names))
  local lease = redis.call('HGET', account.leases, id)
  counts[15] = lease and string.sub(lease, 1, 1)
  answer[3 + at], account.counts, account.lease = counts, counts, lease
  if counts[15] == 'x' or counts[15] == 'e' then
    is_ended = true
  end
  if not counts[13] and ARGV[14] == '1' then
    is_unseeded = true
  end
  for counter = 1, 6 do
    local settled_high, settled_low = counted(counts[counter * 2 - 1])
    local reserved_high, reserved_low = counted(counts[counter * 2])
    if not lease then
      local want = wanted[(counter - 1) % 3 + 1]
      local high, low = settled_high + reserved_high + want[1], settled_low + reserved_low + want[2]
      high, low = high + math.floor(low / NINE_DIGITS), low % NINE_DIGITS
      local limit_high, limit_low = parts(ARGV[limits + (at - 1) * 6 + counter - 1])
      fits = fits and (high < limit_high or (high == limit_high and low <= limit_low))
    end
  end
end

if is_ended then
  answer[1] = 'ended'
elseif is_unseeded then
  answer[1] = 'unseeded'
elseif not fits then
  answer[1] = 'denied'
end
if answer[1] ~= 'granted' then
  return answer
end

-- Counters of windows before the last month are forgotten, once a month. A clock may come back from far ahead: what was
-- begun before is kept until the month after.
local function turn(account)
  local year, number = math.floor(tonumber(month) / 100), tonumber(month) % 100
  local last = number > 1 and tonumber(month) - 1 or (year - 1) * 100 + 12
  local oldest = math.min(last, tonumber(account.counts[14]) or last)
  for _, field in ipairs(redis.call('HKEYS', account.counters)) do
    local day_of, month_of = string.match(field, '^d(%d+)%d%d:'), string.match(field, '^m(%d+):')
    if tonumber(day_of or month_of or month) < oldest then
      redis.call('HDEL', account.counters, field)
    end
  end
  redis.call('HSET', account.counters, 'month', month)
  for _, key in pairs({account.counters, account.leases, account.expiries}) do
    redis.call('PEXPIRE', key, KEPT_UNUSED)
  end
end

local record = table.concat({date, month, unpack(ARGV, 8, 13)}, ' ')
for _, account in ipairs(accounts) do
  if not account.lease then
    keep(account, id, state .. ' ' .. record, hold)
    for counter = 1, 6 do
      local reserved = amount[(counter - 1) % 3 + 1]
      if reserved ~= '0' then
        redis.call('HINCRBY', account.counters, names[counter * 2], reserved)
      end
    end
  elseif string.sub(account.lease, 1, 1) == 'p' then
    keep(account, id, state .. string.sub(account.lease, 2), hold)
  end
  if not account.counts[13] and state == 'r' then
    redis.call('HSET', account.counters, 'known', '1')
  end
  if account.counts[14] ~= month then
    turn(account)
  end
end
return answer
