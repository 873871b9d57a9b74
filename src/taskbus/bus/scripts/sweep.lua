#!lua flags=allow-oom
-- Remove the nodes whose lease ran out. KEYS: nodes, labels, swept.
-- ARGV: prefix, ms for which one sweep by anybody is enough, or 0; a name for this sweep, the same on every attempt.
-- Answers their ids, also to the attempt after one whose answer was lost: nobody else would ever tell of them.
local answer = ARGV[1] .. 'swept:' .. ARGV[3]
local before = redis.call('GET', answer)
if before then return cjson.decode(before) end
local gone = {}
if ARGV[2] ~= '0' and not redis.call('SET', KEYS[3], '1', 'NX', 'PX', ARGV[2]) then return gone end
for _, id in ipairs(redis.call('SMEMBERS', KEYS[1])) do
  if redis.call('EXISTS', ARGV[1] .. 'node:' .. id) == 0 then gone[#gone + 1] = id end
end
if #gone == 0 then return gone end
for _, id in ipairs(gone) do
  redis.call('SREM', KEYS[1], id)
  redis.call('DEL', ARGV[1] .. 'node:' .. id .. ':inbox')
end
for _, label in ipairs(redis.call('SMEMBERS', KEYS[2])) do
  for _, id in ipairs(gone) do redis.call('SREM', ARGV[1] .. 'label:' .. label, id) end
  if redis.call('EXISTS', ARGV[1] .. 'label:' .. label) == 0 then redis.call('SREM', KEYS[2], label) end
end
redis.call('SET', answer, cjson.encode(gone), 'PX', 30000)
return gone
