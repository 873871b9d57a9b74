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
  redis.call('HSET', KEYS[1], 'batch', last)  -- WAIT counts from the last write of its own connection, which may be new
  local number, kept = string.match(redis.call('HGET', KEYS[1], 'errors') or '', '^(%d+) (.*)$')
  local answer = number == ARGV[2] and cjson.decode(kept) or {}
  table.insert(answer, 1, batch - 1)
  table.insert(answer, 1, 'REPEATED')
  return answer
end
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local answer = {'OK', last}

for i = 7, #ARGV, 5 do
  if ARGV[i] ~= '' then
    local prefix = string.match(ARGV[1], '^%d+ %d+ %d+ %d+ (.*)$')
    if redis.call('EXISTS', prefix .. 'blob:' .. ARGV[i]) == 0 then return {'NOBLOB', ARGV[i]} end
  end
end

local errors
for i = 3, #KEYS do
  local a = 3 + (i - 3) * 5
  local event, count, size, frame, blob = ARGV[a], ARGV[a + 1], ARGV[a + 2], ARGV[a + 3], ARGV[a + 4]
  -- n: events so far, b: bytes so far, ms: time of the last id; next_*: where the next mark is due; rest: what is kept as
  -- it is. A number is read by '+ 0' and written by '..', exact below 1e14, half as dear as by tonumber, string.format.
  local n, b, ms, after, next_n, next_b, next_ms, marks
  local rest = ''
  local state = redis.call('HGET', KEYS[2], event)
  if state then
    n, b, ms, after, next_n, next_b, next_ms, marks = string.match(state, '^(%d+) (%d+) (%d+) ()(%d+) (%d+) (%d+) ()')
    n, b, ms, rest = n + 0, b + 0, ms + 0, string.sub(state, after)
  else
    -- How many events the stream has had, by its last frame: for when the streams hash was lost, and the stream was not.
    n, b, ms = 0, 0, 0
    for _, entry in ipairs(redis.pcall('XREVRANGE', KEYS[i], '+', '-', 'COUNT', 20)) do
      local data = entry[2][2]
      if entry[2][1] == 'f' and string.sub(data, 1, 4) == '\245tbf' and #data >= 18 then
        local byte1, byte2, byte3, byte4 = string.byte(data, 15, 18)
        n = string.match(entry[1], '%-(%d+)$') - 1 + byte1 + 256 * (byte2 + 256 * (byte3 + 256 * byte4))
        break
      end
    end
  end
  if now > ms then ms = now end
  local time_text, seq = ms .. '', (n + 1) .. ''
  local fresh = not state
  local id = state and redis.pcall('XADD', KEYS[i], 'NOMKSTREAM', time_text .. '-' .. seq, 'f', frame)
  if not id then  -- the stream is new, or was lost, and shall not stay for ever
    fresh = true
    id = redis.pcall('XADD', KEYS[i], time_text .. '-' .. seq, 'f', frame)
  end
  if type(id) == 'table' and string.find(id.err, 'smaller', 1, true) then
    -- somebody else wrote into the stream: go on behind the last id it has
    local info = redis.call('XINFO', 'STREAM', KEYS[i])
    for k = 1, #info, 2 do
      if info[k] == 'last-generated-id' then ms = tonumber(string.match(info[k + 1], '^(%d+)')) + 1 end
    end
    time_text = ms .. ''
    if ms > now + 3155760000000 then
      id = {err = 'POISONED the last id of this stream leaves no room for another entry'}
    else
      id = redis.pcall('XADD', KEYS[i], time_text .. '-' .. seq, 'f', frame)
    end
  end
  local failed = type(id) == 'table'
  local is_due = not failed and (fresh or n >= next_n + 0 or b >= next_b + 0 or ms >= next_ms + 0)
  if failed or is_due or blob ~= '' then
    -- Seldom. Functions are made here, for each is an object of its own, made whenever its line is passed: with them
    -- outside the script took a twentieth longer, and what Redis has to collect every 50 scripts a sixth.
    local keep_events, keep_bytes, keep_ms, run_ttl, prefix = string.match(ARGV[1], '^(%d+) (%d+) (%d+) (%d+) (.*)$')
    errors = errors or {}

    -- What is done beside the entry must not end the script in the middle: the batch would be written again.
    local function report(text)
      answer[#answer + 1], answer[#answer + 2] = i - 3, text
      errors[#errors + 1], errors[#errors + 2] = i - 3, text
    end
    local function try(command, ...)
      local reply = redis.pcall(command, ...)
      if type(reply) == 'table' and reply.err then
        report('KEPT ' .. command .. ' ' .. (...) .. ': ' .. reply.err)
        return false
      end
      return reply
    end

    if failed then
      if string.find(id.err, 'exhausted', 1, true) then id.err = 'POISONED somebody has used up the ids of this stream' end
      report(id.err)
    end
    if not failed and blob ~= '' then
      try('RPUSH', prefix .. 'blobs:' .. event, seq .. ' ' .. blob)
      redis.call('PEXPIRE', prefix .. 'blobs:' .. event, run_ttl)
    end
    if is_due then
      keep_events, keep_bytes, keep_ms = tonumber(keep_events), tonumber(keep_bytes), tonumber(keep_ms)
      -- Forget what no retention asks for: marks is a list of "ordinal bytes ms-seq;", oldest first.
      marks = (state and string.sub(state, marks) or '') .. seq .. ' ' .. b .. ' ' .. id .. ';'
      local first, others = string.match(marks, '^([^;]*);(.*)$')
      local moved = false
      while others ~= '' do
        local o, bytes, at = string.match(others, '^(%d+) (%d+) (%d+)%-')
        if n + count - o < keep_events and b + size - bytes < keep_bytes and now - at < keep_ms then break end
        first, others = string.match(others, '^([^;]*);(.*)$')
        moved = true
      end
      if moved then
        local o, minid = string.match(first, '^(%d+) %d+ (.*)$')
        try('XTRIM', KEYS[i], 'MINID', '=', minid)
        local blobs = prefix .. 'blobs:' .. event
        while true do
          local oldest = try('LINDEX', blobs, 0)
          if not oldest then break end
          local ordinal, beside = string.match(oldest, '^(%d+) (.*)$')
          if tonumber(ordinal) >= tonumber(o) then break end
          if not try('LPOP', blobs) then break end
          try('UNLINK', prefix .. 'blob:' .. beside)
        end
      end
      -- Whatever they are: what no node can read again stops all who write.
      rest = string.format('%.0f %.0f %.0f %s;%s', math.ceil(n + keep_events / 8), math.ceil(b + keep_bytes / 8),
        math.ceil(ms + keep_ms / 8), first, others)
      redis.call('PEXPIRE', KEYS[i], math.floor(keep_ms * 1.25 + 1000))
    end
  end
  if not failed then
    redis.call('HSET', KEYS[2], event, (n + count) .. ' ' .. (b + size) .. ' ' .. time_text .. ' ' .. rest)
    if not state then redis.call('PEXPIRE', KEYS[2], string.match(ARGV[1], '^%d+ %d+ %d+ (%d+) ')) end
  end
end
redis.call('HSET', KEYS[1], 'batch', ARGV[2])
if errors and #errors > 0 then redis.call('HSET', KEYS[1], 'errors', ARGV[2] .. ' ' .. cjson.encode(errors)) end
-- Redis has Lua collect its garbage every 50 scripts: 60 us in which all wait, and every 25th round of a ping-pong was
-- slow. A part of it each time takes 2 us.
collectgarbage('step', 0)
return answer
