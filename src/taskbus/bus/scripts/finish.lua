#!lua flags=allow-oom
-- Finish the run, once: the first reason stays. Gives every key of the run its last time to live and wakes every node.
-- KEYS: finish, nodes, labels, epoch, streams; of a node its producer hash, too. ARGV: prefix, node, reason, ttl in ms,
-- time or ''.
-- Answers the finish as a flat list: node, .., reason, .., at, ..; or {'FORGOTTEN'}: what a fenced node writes finds no
-- producer.
local prefix, ttl = ARGV[1], ARGV[4]
if KEYS[6] and redis.call('EXISTS', KEYS[6]) == 0 then return {'FORGOTTEN'} end
if redis.call('EXISTS', KEYS[1]) == 0 then
  local time = redis.call('TIME')
  local at = time[1] .. '.' .. string.format('%06d', time[2])
  if ARGV[5] ~= '' then at = ARGV[5] end
  redis.call('HSET', KEYS[1], 'node', ARGV[2], 'reason', ARGV[3], 'at', at)
end
local finish = redis.call('HGETALL', KEYS[1])
for i = 1, 5 do redis.call('PEXPIRE', KEYS[i], ttl) end
for _, label in ipairs(redis.call('SMEMBERS', KEYS[3])) do redis.call('PEXPIRE', prefix .. 'label:' .. label, ttl) end
for _, id in ipairs(redis.call('SMEMBERS', KEYS[2])) do
  local node = prefix .. 'node:' .. id
  if redis.call('EXISTS', node) == 1 then
    redis.call('XADD', node .. ':inbox', 'MAXLEN', '~', '100', '*', 'k', 'finish', unpack(finish))
    redis.call('PEXPIRE', node .. ':inbox', ttl)
  end
end
return finish
