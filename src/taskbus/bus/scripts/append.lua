#!lua
-- Append one batch of frames of one producer, all or nothing, at most once.
-- KEYS: producer hash, streams hash, then one stream for each frame.
-- ARGV: retention events, bytes and milliseconds, run ttl in ms and prefix, all in one; batch number; then for each
--       frame: event, number of events, size in bytes, frame, blob id or ''.
-- Answers {'OK', number of the producer's batch before this one, errors: index, text, ...}, the same with 'REPEATED'
-- when this batch was taken before, {'FORGOTTEN'} or {'NOBLOB', blob id}.
--
-- Every reader waits for this script, so it makes no call of Redis more than needed (1.5 us each, as much as a whole XADD
-- outside of scripts), and takes few arguments. A claim makes the producer hash, and the claim of somebody else for the
-- same node id takes it away: what a fenced node writes finds no producer.
local last = redis.call('HGET', KEYS[1], 'batch')
if not last then return {'FORGOTTEN'} end
last = tonumber(last)
local batch = tonumber(ARGV[2])
if last >= batch then
  local number, kept = string.match(redis.call('HGET', KEYS[1], 'errors') or '', '^(%d+) (.*)$')
  local answer = number == ARGV[2] and cjson.decode(kept) or {}
  table.insert(answer, 1, batch - 1)
  table.insert(answer, 1, 'REPEATED')
  return answer
end
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local answer, errors, frame_now = {'OK', last}, {}, 0
local keep_events, keep_bytes, keep_ms, run_ttl, prefix
local function parse_limits()
  keep_events, keep_bytes, keep_ms, run_ttl, prefix = string.match(ARGV[1], '^(%d+) (%d+) (%d+) (%d+) (.*)$')
  keep_events, keep_bytes, keep_ms = tonumber(keep_events), tonumber(keep_bytes), tonumber(keep_ms)
end
for i = 7, #ARGV, 5 do
  if ARGV[i] ~= '' then
    if not prefix then parse_limits() end
    if redis.call('EXISTS', prefix .. 'blob:' .. ARGV[i]) == 0 then return {'NOBLOB', ARGV[i]} end
  end
end

-- What is done beside the entry must not end the script in the middle: the batch would be written again.
local function report(text)
  answer[#answer + 1], answer[#answer + 2] = frame_now, text
  errors[#errors + 1], errors[#errors + 2] = frame_now, text
end
local function try(command, ...)
  local reply = redis.pcall(command, ...)
  if type(reply) == 'table' and reply.err then
    report('KEPT ' .. command .. ' ' .. (...) .. ': ' .. reply.err)
    return false
  end
  return reply
end

-- Forget what no retention asks for: marks is a list of "ordinal bytes ms-seq;", oldest first.
local function trim(event, stream, n, b, marks)
  local first, rest = string.match(marks, '^([^;]*);(.*)$')
  local moved = false
  while rest ~= '' do
    local o, bytes, ms = string.match(rest, '^(%d+) (%d+) (%d+)%-')
    if n - tonumber(o) < keep_events and b - tonumber(bytes) < keep_bytes and now - tonumber(ms) < keep_ms then break end
    first, rest = string.match(rest, '^([^;]*);(.*)$')
    moved = true
  end
  if moved then
    local o, id = string.match(first, '^(%d+) %d+ (.*)$')
    try('XTRIM', stream, 'MINID', '=', id)
    local blobs = prefix .. 'blobs:' .. event
    while true do
      local oldest = try('LINDEX', blobs, 0)
      if not oldest then break end
      local ordinal, blob = string.match(oldest, '^(%d+) (.*)$')
      if tonumber(ordinal) >= tonumber(o) then break end
      if not try('LPOP', blobs) then break end
      try('UNLINK', prefix .. 'blob:' .. blob)
    end
  end
  return first .. ';' .. rest
end

-- How many events a stream has had, by its last frame: for when the streams hash was lost, and the stream was not.
local function recount(stream)
  local entries = redis.pcall('XREVRANGE', stream, '+', '-', 'COUNT', 20)
  for _, entry in ipairs(entries) do
    local data = entry[2][2]
    if entry[2][1] == 'f' and string.sub(data, 1, 4) == '\245tbf' and #data >= 18 then
      local a, b, c, d = string.byte(data, 15, 18)
      return tonumber(string.match(entry[1], '%-(%d+)$')) - 1 + a + 256 * (b + 256 * (c + 256 * d))
    end
  end
  return 0
end

for i = 3, #KEYS do
  frame_now = i - 3
  local a = 3 + frame_now * 5
  local event, count, size, frame, blob = ARGV[a], ARGV[a + 1], ARGV[a + 2], ARGV[a + 3], ARGV[a + 4]
  -- n: events so far, b: bytes so far, ms: time of the last id; next_*: where the next mark is due. Numbers become text by
  -- '..', exact below 1e14 and half as dear as string.format.
  local n, b, ms, rest, next_n, next_b, next_ms, marks = 0, 0, 0, '', 0, 0, 0, ''
  local state = redis.call('HGET', KEYS[2], event)
  if state then
    n, b, ms, rest, next_n, next_b, next_ms, marks = string.match(state, '^(%d+) (%d+) (%d+) ((%d+) (%d+) (%d+) (.*))$')
    n, b, ms = tonumber(n), tonumber(b), tonumber(ms)
  else
    n = recount(KEYS[i])
  end
  if now > ms then ms = now end
  local seq = n + 1
  local fresh = not state
  local id = state and redis.pcall('XADD', KEYS[i], 'NOMKSTREAM', ms .. '-' .. seq, 'f', frame)
  if not id then  -- the stream is new, or was lost, and shall not stay for ever
    fresh = true
    id = redis.pcall('XADD', KEYS[i], ms .. '-' .. seq, 'f', frame)
  end
  if type(id) == 'table' and string.find(id.err, 'smaller', 1, true) then
    -- somebody else wrote into the stream: go on behind the last id it has
    local info = redis.call('XINFO', 'STREAM', KEYS[i])
    for k = 1, #info, 2 do
      if info[k] == 'last-generated-id' then ms = tonumber(string.match(info[k + 1], '^(%d+)')) + 1 end
    end
    if ms > now + 3155760000000 then
      id = {err = 'POISONED the last id of this stream leaves no room for another entry'}
    else
      id = redis.pcall('XADD', KEYS[i], ms .. '-' .. seq, 'f', frame)
    end
  end
  if type(id) == 'table' then
    if string.find(id.err, 'exhausted', 1, true) then id.err = 'POISONED somebody has used up the ids of this stream' end
    report(id.err)
  else
    if blob ~= '' then
      try('RPUSH', prefix .. 'blobs:' .. event, seq .. ' ' .. blob)
      redis.call('PEXPIRE', prefix .. 'blobs:' .. event, run_ttl)
    end
    if fresh or n >= tonumber(next_n) or b >= tonumber(next_b) or ms >= tonumber(next_ms) then
      if not prefix then parse_limits() end
      marks = trim(event, KEYS[i], n + count, b + size, marks .. seq .. ' ' .. b .. ' ' .. id .. ';')
      rest = string.format('%.0f %.0f %.0f %s', math.ceil(n + keep_events / 8), math.ceil(b + keep_bytes / 8),
        math.ceil(ms + keep_ms / 8), marks)  -- whatever they are: what no node can read again stops all who write
      redis.call('PEXPIRE', KEYS[i], math.floor(keep_ms * 1.25 + 1000))
    end
    redis.call('HSET', KEYS[2], event, (n + count) .. ' ' .. (b + size) .. ' ' .. ms .. ' ' .. rest)
    if not state then redis.call('PEXPIRE', KEYS[2], run_ttl) end
  end
end
redis.call('HSET', KEYS[1], 'batch', ARGV[2])
if #errors > 0 then redis.call('HSET', KEYS[1], 'errors', ARGV[2] .. ' ' .. cjson.encode(errors)) end
return answer
