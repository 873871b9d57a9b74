#!lua flags=allow-oom
-- Renew the time to live of a run's keys while nodes are there; a finished run is left to expire.
-- KEYS: finish, nodes, labels, epoch, streams, producer, owner, inbox. ARGV: prefix, ttl in ms, labels...
if redis.call('EXISTS', KEYS[1]) == 1 then return 0 end
for i = 2, #KEYS do redis.call('PEXPIRE', KEYS[i], ARGV[2]) end
for i = 3, #ARGV do redis.call('PEXPIRE', ARGV[1] .. 'label:' .. ARGV[i], ARGV[2]) end
return 1
