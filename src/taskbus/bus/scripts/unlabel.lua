#!lua flags=allow-oom
-- Take labels off a node, if this life of it still holds its id.
-- KEYS: node hash, labels. ARGV: prefix, id, token, the labels that it keeps, labels that go... Answers 1 when it did.
if redis.call('HGET', KEYS[1], 'token') ~= ARGV[3] then return 0 end
redis.call('HSET', KEYS[1], 'labels', ARGV[4])
for i = 5, #ARGV do
  local label = ARGV[1] .. 'label:' .. ARGV[i]
  redis.call('SREM', label, ARGV[2])
  if redis.call('EXISTS', label) == 0 then redis.call('SREM', KEYS[2], ARGV[i]) end
end
return 1
