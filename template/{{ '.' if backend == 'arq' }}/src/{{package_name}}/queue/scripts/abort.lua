#!lua flags=allow-oom
-- Abort a job: end it where it waits, or ask the worker that runs it.
-- ARGV: service, queue, id, result to store, how long in milliseconds, chain, value of the chain, task,
-- how many finished jobs are listed.
-- Returns 'waiting', 'running', or 'gone'.
local service, queue, id = ARGV[1], ARGV[2], ARGV[3]
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
if not redis.call('ZSCORE', queue, id) then return 'gone' end
if redis.call('PTTL', 'arq:in-progress:' .. id) > 0 then
  redis.call('ZADD', 'arq:abort', now, id)
  return 'running'
end
redis.call('SET', 'arq:result:' .. id, ARGV[4], 'PX', ARGV[5])
redis.call('DEL', 'arq:job:' .. id, 'arq:in-progress:' .. id, 'arq:retry:' .. id)
redis.call('ZREM', queue, id)
redis.call('HDEL', service .. ':running', id)
local chain = service .. ':chain:' .. ARGV[6]
if redis.call('EXISTS', chain) == 1 then redis.call('HSET', chain, 'state', ARGV[7]) end
-- It may have had the last turn under its task's rate limit: others are checked again when they come.
redis.call('DEL', service .. ':rate:' .. ARGV[8] .. ':waiting')
-- The name comes from the stored job, which may hold any.
local known = type(redis.pcall('ZSCORE', service .. ':tasks', ARGV[8])) == 'string'
local task = known and ARGV[8] or '?'
redis.pcall('HINCRBY', service .. ':figures', task .. ':aborted', 1)
redis.pcall('LPUSH', service .. ':finished', task .. ' aborted ' .. id)
redis.pcall('LTRIM', service .. ':finished', 0, ARGV[9] - 1)
return 'waiting'
