-- ARGV: window (d or m and its name), whether what is reserved there is corrected (1 or 0).
-- Answers what is counted as reserved (3), what live leases hold (3), and their ids.
local account, window = accounts[1], ARGV[5]
local names = {window .. ':rr', window .. ':tr', window .. ':cr'}
local counts = redis.call('HMGET', account.counters, unpack(names))
for at = 1, 3 do
  counted(counts[at])
end
local ids, highs, lows = {}, {0, 0, 0}, {0, 0, 0}
for _, id in ipairs(redis.call('HKEYS', account.leases)) do
  local text = redis.call('HGET', account.leases, id)
  local state = string.sub(text, 1, 1)
  if state ~= 'x' and state ~= 'e' then
    local amounts = {string.match(text, '^[rp] (%d+) (%d+) (%d+) (%d+) (%d+) %d+ %d+ %d+$')}
    if #amounts ~= 5 then
      error({err = 'QUOTA a lease is not a lease'})
    end
    ids[#ids + 1] = id
    if window == 'd' .. amounts[1] or window == 'm' .. amounts[2] then
      for kind = 1, 3 do
        local high, low = parts(amounts[2 + kind])
        highs[kind], lows[kind] = highs[kind] + high, lows[kind] + low
      end
    end
  end
end
local held = {}
for kind = 1, 3 do
  local high, low = highs[kind] + math.floor(lows[kind] / NINE_DIGITS), lows[kind] % NINE_DIGITS
  if high > MOST_HIGH or (high == MOST_HIGH and low > MOST_LOW) then
    held[kind] = MOST
  elseif high > 0 then
    held[kind] = string.format('%.0f%09.0f', high, low)
  else
    held[kind] = string.format('%.0f', low)
  end
end
if ARGV[6] == '1' then
  for kind = 1, 3 do
    if (counts[kind] or '0') ~= held[kind] then
      redis.call('HSET', account.counters, names[kind], held[kind])
      redis.call('PEXPIRE', account.counters, KEPT_UNUSED)
    end
  end
end
return {counts, held, ids}
