#!lua flags=allow-oom
-- Claim due jobs, and no more: no lease, no attempt counted, no index of what runs, no suspects.
local worker, queues = ARGV[2], tonumber(ARGV[7])
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local token = worker .. ':1:' .. now .. ':0'
local claimed, next_due = {}, 0
for q = 1, queues do
  local queue, slots = ARGV[6 + 2 * q], tonumber(ARGV[7 + 2 * q])
  if slots > 0 then
    local due = redis.call('ZRANGE', queue, '-inf', now, 'BYSCORE', 'LIMIT', 0, slots, 'WITHSCORES')
    for i = 1, #due, 2 do
      local payload = redis.call('GET', 'arq:job:' .. due[i])
      redis.call('ZREM', queue, due[i])
      claimed[#claimed + 1] = {queue, due[i], due[i + 1], 1, token, payload, ''}
    end
    local first = tonumber(redis.call('ZRANGE', queue, 0, 0, 'WITHSCORES')[2])
    if first and first <= now then
      redis.call('LPUSH', queue .. ':wake', 1)
      redis.call('LTRIM', queue .. ':wake', 0, 0)
    end
    if first and (next_due == 0 or first < next_due) then next_due = math.max(first, 1) end
  end
end
return {now, next_due, 0, claimed, {}}
