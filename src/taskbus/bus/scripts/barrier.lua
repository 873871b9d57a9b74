#!lua flags=allow-oom
-- Arrive at a barrier, or ask again. KEYS: barrier hash.
-- ARGV: prefix, name, node id, count, ttl in ms, ticket or '', token of the node's life, name of this arrival.
-- The hash holds the generation, node:<id> for each node that has arrived in it (a node that died does not count, nor
-- does its next life), and passed:<id> for each arrival at which the last generation opened.
-- Answers {1, generation} when it is open, else {0, generation, ids that are there...}.
local prefix, id, ticket, token, arrival = ARGV[1], ARGV[3], ARGV[6], ARGV[7], ARGV[8]
local generation = redis.call('HGET', KEYS[1], 'generation') or '0'
if ticket ~= '' and tonumber(generation) > tonumber(ticket) then return {1, generation} end
if redis.call('HGET', KEYS[1], 'passed:' .. id) == arrival then return {1, generation} end
redis.call('HSET', KEYS[1], 'node:' .. id, token .. ' ' .. arrival, 'generation', generation)
redis.call('PEXPIRE', KEYS[1], ARGV[5])
local here, arrivals = {}, {}
local all = redis.call('HGETALL', KEYS[1])
for i = 1, #all, 2 do
  local other = string.match(all[i], '^node:(.*)$')
  if other then
    local life, how = string.match(all[i + 1], '^(%S*) (.*)$')
    if redis.call('HGET', prefix .. 'node:' .. other, 'token') == life then
      here[#here + 1] = other
      arrivals[#arrivals + 1] = how
    end
  end
end
if #here < tonumber(ARGV[4]) then return {0, generation, unpack(here)} end
generation = string.format('%.0f', tonumber(generation) + 1)
redis.call('DEL', KEYS[1])
redis.call('HSET', KEYS[1], 'generation', generation)
redis.call('PEXPIRE', KEYS[1], ARGV[5])
for i, other in ipairs(here) do
  redis.call('HSET', KEYS[1], 'passed:' .. other, arrivals[i])
  local inbox = prefix .. 'node:' .. other .. ':inbox'
  redis.call('XADD', inbox, 'MAXLEN', '~', '100', '*', 'k', 'barrier', 'name', ARGV[2])
  redis.call('PEXPIRE', inbox, ARGV[5])
end
return {1, generation}
