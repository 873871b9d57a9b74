#!lua flags=allow-oom
-- Take a node id and register, or do it again for the same life of a node.
-- KEYS: nodes, labels, epoch, finish.
-- ARGV: prefix, wanted id or '', token, lease in ms, run ttl in ms, a new epoch, host, pid, role, step, the epoch that it
--       knows if it was there before, labels...
-- Answers {'OK', id, epoch, time in ms, last id of the inbox, finish as a flat list, 1 if the node was not there, 1 if
-- Redis still knows this life with the epoch that the node knows, and at the node's first time for each stream the
-- event, how many events it has had, and the time of the last one in ms, or nil where that is not known}
-- or {'TAKEN', host, pid, started, ms until the lease of its holder runs out}.
local prefix, id, token, lease, ttl = ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5]
if id == '' then
  local n = 0
  while true do
    local found = redis.call('HGET', prefix .. 'node:' .. n, 'token')
    if not found or found == token then break end  -- ours: the answer to an earlier attempt was lost
    n = n + 1
  end
  id = tostring(n)
end
local node = prefix .. 'node:' .. id
local holder = redis.call('HMGET', node, 'token', 'host', 'pid', 'started')
if holder[1] and holder[1] ~= token then
  return {'TAKEN', holder[2] or '', holder[3] or '', holder[4] or '', redis.call('PTTL', node)}
end
-- A life that was away and whose id had another owner since stays out, even if that one has left.
local owner = redis.call('GET', node .. ':owner')
local again = ARGV[11] ~= ''
if again and owner and owner ~= token then return {'TAKEN', '', '', '', 0} end
-- All or nothing: a key of the wrong type would end this script in the middle.
local inbox, producer = node .. ':inbox', prefix .. 'producer:' .. token
local kinds = {[KEYS[1]] = 'set', [KEYS[2]] = 'set', [KEYS[3]] = 'string', [KEYS[4]] = 'hash', [inbox] = 'stream', [producer] = 'hash'}
for i = 12, #ARGV do kinds[prefix .. 'label:' .. ARGV[i]] = 'set' end
for key, kind in pairs(kinds) do
  local held = redis.call('TYPE', key)
  held = held.ok or held
  if held ~= 'none' and held ~= kind then
    return redis.error_reply('WRONGTYPE key ' .. key .. ' holds a ' .. held .. ' instead of a ' .. kind)
  end
end
-- Each key gets its time to live right after it was written, so that none stays for ever where a right is missing.
redis.call('PEXPIRE', KEYS[1], ttl)
-- No producer, no append: that fences the life before. Its owner key lives as long as its producer does, so that only
-- who deletes or evicts that one key alone lets a paused node write until its next heartbeat.
if owner and owner ~= token then redis.call('DEL', prefix .. 'producer:' .. owner) end
redis.call('SET', node .. ':owner', token, 'PX', ttl)
redis.call('HSETNX', producer, 'batch', '-1')
redis.call('PEXPIRE', producer, ttl)
local held = redis.call('HMGET', producer, 'epoch', 'before')  -- before: for a claim that is repeated
local same = again and (held[1] == ARGV[11] or held[2] == ARGV[11])
local time = redis.call('TIME')
local now = string.format('%.0f', time[1] * 1000 + math.floor(time[2] / 1000))
local is_first = redis.call('SET', KEYS[3], ARGV[6] .. '@' .. now, 'NX', 'PX', ttl)  -- random, and when the run began
local epoch = redis.call('GET', KEYS[3])
if held[1] ~= epoch then redis.call('HSET', producer, 'epoch', epoch, 'before', held[1] or '') end
redis.call('PEXPIRE', KEYS[3], ttl)
local finish = redis.call('HGETALL', KEYS[4])
-- Whoever held this id before reads here that it does not any more.
local last = redis.call('XADD', inbox, 'MAXLEN', '~', '100', '*', 'k', 'claim', 'token', token)
redis.call('PEXPIRE', inbox, ttl)
redis.call('HSET', node, 'token', token, 'lease', lease, 'host', ARGV[7], 'pid', ARGV[8], 'role', ARGV[9], 'step', ARGV[10],
  'healthy', '1', 'labels', table.concat(ARGV, ',', 12))
redis.call('PEXPIRE', node, lease)
redis.call('HSETNX', node, 'started', now)
redis.call('SADD', KEYS[1], id)
redis.call('PEXPIRE', KEYS[1], ttl)
for i = 12, #ARGV do
  for key, member in pairs({[KEYS[2]] = ARGV[i], [prefix .. 'label:' .. ARGV[i]] = id}) do
    redis.call('SADD', key, member)
    redis.call('PEXPIRE', key, ttl)
  end
end
local streams = false
local states = again and {} or redis.pcall('HGETALL', prefix .. 'streams')
if not states.err and (is_first or #states > 0) then  -- one of the wrong type is named to whoever writes
  streams = {}
  for i = 2, #states, 2 do
    local count, ms = string.match(states[i], '^(%d+) %d+ (%d+) ')
    if count then
      for _, part in ipairs({states[i - 1], count, ms}) do streams[#streams + 1] = part end
    end
  end
end
return {'OK', id, epoch, now, last, finish, holder[1] and 0 or 1, same and 1 or 0, streams}
