#!lua flags=no-writes
-- Who is on the run. KEYS: nodes. ARGV: prefix.
-- Answers a flat list: id, milliseconds left of its lease, its hash, ...; and how many are listed whose lease ran out.
local answer, dead = {}, 0
for _, id in ipairs(redis.call('SMEMBERS', KEYS[1])) do
  local node = ARGV[1] .. 'node:' .. id
  local left = redis.call('PTTL', node)
  if left > 0 then
    answer[#answer + 1] = id
    answer[#answer + 1] = left
    answer[#answer + 1] = redis.call('HGETALL', node)
  else
    dead = dead + 1
  end
end
return {answer, dead}
