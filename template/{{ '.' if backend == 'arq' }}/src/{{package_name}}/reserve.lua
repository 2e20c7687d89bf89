-- Keep a start for a job of a task with a rate limit; return the milliseconds until then.
-- KEYS: the task's latest starts, the job's kept start, the job's tries. ARGV: how many starts there
-- may be in how many milliseconds.
if redis.call('DEL', KEYS[2]) == 1 then return 0 end
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local earlier = redis.call('LINDEX', KEYS[1], ARGV[1] - 1)
local start = math.max(now, earlier and earlier + ARGV[2] or 0)
redis.call('LPUSH', KEYS[1], start)
redis.call('LTRIM', KEYS[1], 0, ARGV[1] - 1)
redis.call('PEXPIRE', KEYS[1], start - now + ARGV[2])
if start > now then
  redis.call('SET', KEYS[2], 1, 'PX', start - now + 86400000)
  redis.call('DECR', KEYS[3])
end
return start - now
