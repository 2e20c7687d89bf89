#!lua flags=allow-oom
-- Take a job out of the dead letter queue; enqueue it again, or forget it.
-- ARGV: service, id, queue, payload ('' to forget it), how long jobs are stored in milliseconds, its
-- chain ('' for none) and the chain's new state.
-- Returns 1, or 0 if there is no such dead job.
local service, id, queue, payload = ARGV[1], ARGV[2], ARGV[3], ARGV[4]
if redis.call('ZREM', service .. ':dead', id) == 0 then return 0 end
redis.call('DEL', service .. ':dead:' .. id)
-- It is no finished job either: it runs again, or is to be forgotten.
local listed = redis.pcall('LRANGE', service .. ':finished', 0, -1)
for _, entry in ipairs(listed) do
  if entry:match('^%S+ %S+ (.*)$') == id then
    redis.call('LREM', service .. ':finished', 0, entry)
  end
end
if payload ~= '' then
  local time = redis.call('TIME')
  redis.call('DEL', 'arq:result:' .. id, 'arq:retry:' .. id)
  redis.call('SET', 'arq:job:' .. id, payload, 'PX', ARGV[5])
  redis.call('ZADD', queue, time[1] * 1000 + math.floor(time[2] / 1000), id)
  local chain = service .. ':chain:' .. ARGV[6]
  if redis.call('EXISTS', chain) == 1 then redis.call('HSET', chain, 'state', ARGV[7]) end
  redis.call('LPUSH', queue .. ':wake', 1)
  redis.call('LTRIM', queue .. ':wake', 0, 0)
end
return 1
