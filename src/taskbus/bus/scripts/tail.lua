#!lua flags=no-writes
-- Where streams end now. KEYS: streams hash, then streams. ARGV: their event names.
-- Answers for each: the last id ('0-0' when there is no stream), and the number of events so far (-1 when it is not
-- known, -2 when the key holds no stream).
local answer = {}
for i = 2, #KEYS do
  local last, count = '0-0', 0
  local state = redis.call('HGET', KEYS[1], ARGV[i - 1])
  if redis.call('EXISTS', KEYS[i]) == 1 then
    local info = redis.pcall('XINFO', 'STREAM', KEYS[i])
    if info.err and not string.find(info.err, 'WRONGTYPE', 1, true) then redis.call('XINFO', 'STREAM', KEYS[i]) end
    count = info.err and -2 or -1
    for k = 1, #info, 2 do
      if info[k] == 'last-generated-id' then last = info[k + 1] end
    end
  end
  if state and count ~= -2 then count = tonumber(string.match(state, '^(%d+)')) end
  answer[#answer + 1] = last
  answer[#answer + 1] = count
end
return answer
