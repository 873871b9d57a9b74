#!lua flags=allow-oom
-- Arrive at a barrier, or ask again. KEYS: barrier hash. ARGV: prefix, name, node id, count, ttl in ms, ticket or ''.
-- The hash holds the generation and a field for each node that has arrived in it; a node that died does not count.
-- Answers {1, generation} when it is open, else {0, generation, ids that are there...}.
local prefix, ticket = ARGV[1], ARGV[6]
local generation = redis.call('HGET', KEYS[1], 'generation') or '0'
if ticket ~= '' and tonumber(generation) > tonumber(ticket) then return {1, generation} end
redis.call('HSET', KEYS[1], 'node:' .. ARGV[3], '1', 'generation', generation)
redis.call('PEXPIRE', KEYS[1], ARGV[5])
local here = {}
for _, field in ipairs(redis.call('HKEYS', KEYS[1])) do
  local id = string.match(field, '^node:(.*)$')
  if id and redis.call('EXISTS', prefix .. 'node:' .. id) == 1 then here[#here + 1] = id end
end
if #here < tonumber(ARGV[4]) then return {0, generation, unpack(here)} end
generation = string.format('%.0f', tonumber(generation) + 1)
redis.call('DEL', KEYS[1])
redis.call('HSET', KEYS[1], 'generation', generation)
redis.call('PEXPIRE', KEYS[1], ARGV[5])
for _, id in ipairs(here) do
  redis.call('XADD', prefix .. 'node:' .. id .. ':inbox', 'MAXLEN', '~', '100', '*', 'k', 'barrier', 'name', ARGV[2])
  redis.call('PEXPIRE', prefix .. 'node:' .. id .. ':inbox', ARGV[5])
end
return {1, generation}
