#!lua flags=allow-oom
-- Take a node off the registry, if this life of it still holds its id.
-- KEYS: nodes, labels, node hash, inbox. ARGV: prefix, id, token, labels... Answers 1 when it did.
local owner = redis.call('HGET', KEYS[3], 'token')
if owner and owner ~= ARGV[3] then return 0 end
redis.call('SREM', KEYS[1], ARGV[2])
for i = 4, #ARGV do
  local label = ARGV[1] .. 'label:' .. ARGV[i]
  redis.call('SREM', label, ARGV[2])
  if redis.call('EXISTS', label) == 0 then redis.call('SREM', KEYS[2], ARGV[i]) end
end
redis.call('DEL', KEYS[3], KEYS[4])
return 1
