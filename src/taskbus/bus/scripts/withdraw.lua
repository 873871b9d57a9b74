#!lua flags=allow-oom
-- Take an arrival at a barrier back. KEYS: barrier hash. ARGV: node id, token of its life, name of the arrival.
-- Answers 1 when the barrier has opened with it.
if redis.call('HGET', KEYS[1], 'passed:' .. ARGV[1]) == ARGV[3] then return 1 end
if redis.call('HGET', KEYS[1], 'node:' .. ARGV[1]) == ARGV[2] .. ' ' .. ARGV[3] then
  redis.call('HDEL', KEYS[1], 'node:' .. ARGV[1])
end
return 0
