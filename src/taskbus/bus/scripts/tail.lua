#!lua flags=no-writes
-- Where streams end now. KEYS: streams hash, then streams. ARGV: their event names.
-- Answers for each: the last id ('0-0' when there is no stream), the number of events so far.
local answer = {}
for i = 2, #KEYS do
  local last = '0-0'
  if redis.call('EXISTS', KEYS[i]) == 1 then
    local info = redis.call('XINFO', 'STREAM', KEYS[i])
    for k = 1, #info, 2 do
      if info[k] == 'last-generated-id' then last = info[k + 1] end
    end
  end
  local state = redis.call('HGET', KEYS[1], ARGV[i - 1])
  answer[#answer + 1] = last
  answer[#answer + 1] = tonumber(state and string.match(state, '^(%d+)') or '0')
end
return answer
