-- ARGV: window (d or m and its name), whether what is reserved there is corrected (1 or 0).
-- Answers what is counted as reserved (3), what live leases hold (3), what expired ones have charged (3), and the ids of both.
local account, window = accounts[1], ARGV[5]
local names = {window .. ':rr', window .. ':tr', window .. ':cr'}
local counts = redis.call('HMGET', account.counters, unpack(names))
for at = 1, 3 do
  counted(counts[at])
end

-- Of requests, tokens and cost each the high and the low digits.
local held, charged = {{0, 0}, {0, 0}, {0, 0}}, {{0, 0}, {0, 0}, {0, 0}}
local ids = {}
for _, id in ipairs(redis.call('HKEYS', account.leases)) do
  local text = redis.call('HGET', account.leases, id)
  if string.sub(text, 1, 1) ~= 'e' then
    local words = {string.match(text, '^([rpx]) (%d+) (%d+) (%d+) (%d+) (%d+) (%d+) (%d+) (%d+)$')}
    if #words ~= 9 then
      error({err = 'QUOTA a lease is not a lease'})
    end
    ids[#ids + 1] = id
    if window == 'd' .. words[2] or window == 'm' .. words[3] then
      local sums, before = held, 3
      if words[1] == 'x' then
        sums, before = charged, 6
      end
      for kind = 1, 3 do
        local high, low = parts(words[before + kind])
        sums[kind] = {sums[kind][1] + high, sums[kind][2] + low}
      end
    end
  end
end

local function texts(sums)
  local all = {}
  for kind = 1, 3 do
    local high, low = sums[kind][1] + math.floor(sums[kind][2] / NINE_DIGITS), sums[kind][2] % NINE_DIGITS
    if high > MOST_HIGH or (high == MOST_HIGH and low > MOST_LOW) then
      all[kind] = MOST
    elseif high > 0 then
      all[kind] = string.format('%.0f%09.0f', high, low)
    else
      all[kind] = string.format('%.0f', low)
    end
  end
  return all
end

held, charged = texts(held), texts(charged)
if ARGV[6] == '1' then
  for kind = 1, 3 do
    if (counts[kind] or '0') ~= held[kind] then
      redis.call('HSET', account.counters, names[kind], held[kind])
      redis.call('PEXPIRE', account.counters, KEPT_UNUSED)
    end
  end
end
return {counts, held, charged, ids}
