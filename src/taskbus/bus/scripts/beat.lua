#!lua flags=allow-oom
-- Renew the lease and note how the node is.
-- KEYS: node hash, finish. ARGV: token, lease in ms, then field, value, ...
-- Answers 'OK', 'FENCED' or 'FORGOTTEN', and 1 when the run is finished.
local owner = redis.call('HGET', KEYS[1], 'token')
if not owner then return {'FORGOTTEN', 0} end
if owner ~= ARGV[1] then return {'FENCED', 0} end
if #ARGV > 2 then redis.call('HSET', KEYS[1], unpack(ARGV, 3)) end
redis.call('PEXPIRE', KEYS[1], ARGV[2])
return {'OK', redis.call('EXISTS', KEYS[2])}
