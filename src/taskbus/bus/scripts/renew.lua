#!lua flags=allow-oom
-- Renew the time to live of a run's keys while nodes are there; a finished run is left to expire.
-- KEYS: finish, nodes, labels, epoch, streams, producer, owner, inbox. ARGV: prefix, ttl in ms, labels...
if redis.call('EXISTS', KEYS[1]) == 1 then return 0 end
-- One node renews for all, for each change of a key is told to every node that watches it.
local function renew(key)
  local left = redis.call('PTTL', key)
  if left ~= -2 and left < 0.8 * ARGV[2] then redis.call('PEXPIRE', key, ARGV[2]) end
end
for i = 2, #KEYS do renew(KEYS[i]) end
for i = 3, #ARGV do renew(ARGV[1] .. 'label:' .. ARGV[i]) end
return 1
