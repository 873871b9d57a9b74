#!lua flags=allow-oom
-- Give up at a barrier. KEYS: barrier hash. ARGV: node id, ticket. Answers 1 when it has opened meanwhile.
local generation = redis.call('HGET', KEYS[1], 'generation') or '0'
if tonumber(generation) > tonumber(ARGV[2]) then return 1 end
redis.call('HDEL', KEYS[1], 'node:' .. ARGV[1])
return 0
