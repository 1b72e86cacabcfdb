#!lua flags=no-writes
-- ARGV: counters, leases and expiries, as keys of a department, of which none is touched. Answers the first command of a step that whoever
-- asks may not run on them, or nothing.
local counters, leases, expiries = ARGV[1], ARGV[2], ARGV[3]
local all = {
  {'EVALSHA', '0', '1', counters}, {'TIME'},
  {'HGET', leases, '0'}, {'HMGET', counters, '0'}, {'HEXISTS', leases, '0'}, {'HKEYS', counters},
  {'HSET', counters, '0', '0'}, {'HSET', leases, '0', '0'}, {'HSETNX', counters, '0', '0'},
  {'HINCRBY', counters, '0', '0'}, {'HDEL', counters, '0'}, {'HDEL', leases, '0'},
  {'ZADD', expiries, '0', '0'}, {'ZRANGE', expiries, '0', '0'}, {'ZREM', expiries, '0'}, {'ZCARD', expiries},
  {'PEXPIRE', counters, '1'}, {'PEXPIRE', leases, '1'}, {'PEXPIRE', expiries, '1'},
}
for _, command in ipairs(all) do
  if not redis.acl_check_cmd(unpack(command)) then
    return command[1]
  end
end
return ''
