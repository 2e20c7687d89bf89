#!lua flags=allow-oom
-- End attempts, each only if its worker still holds the job: a result that comes too late is dropped.
-- ARGV: service, how long jobs are stored, how many dead jobs are kept and how long; then for each
-- attempt: queue, id, token, kind, document, milliseconds, and '' or the chain as JSON: its id and
-- state, and the queue, id and payload of the next step. Kinds: 'end' (store the result), 'dead' (also among the dead jobs), 'retry'
-- (due again after the milliseconds), 'release' (due now, and not counted as an attempt).
-- Returns for each attempt 1, 0 where the job is held by another, or the text of an error.
local service, stored, max_dead, keep_dead = ARGV[1], ARGV[2], tonumber(ARGV[3]), ARGV[4]
local running, dead = service .. ':running', service .. ':dead'
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local aborts = redis.call('TYPE', 'arq:abort').ok == 'zset'

local function wake(queue)
  redis.call('LPUSH', queue .. ':wake', 1)
  redis.call('LTRIM', queue .. ':wake', 0, 0)
end

local function held(id, token)
  local read, holder = pcall(redis.call, 'GET', 'arq:in-progress:' .. id)
  if read and holder then return holder == token end
  -- The lease has ended. Nobody may have claimed the job since.
  local last = redis.call('HGET', running, id)
  return last and last:sub(-#token) == token
end

local function bury(id, document)
  redis.call('SET', dead .. ':' .. id, document, 'PX', keep_dead)
  redis.call('ZADD', dead, now, id)
  redis.call('ZREMRANGEBYSCORE', dead, '-inf', now - keep_dead)
  for _, old in ipairs(redis.call('ZRANGE', dead, 0, -1 - max_dead)) do
    redis.call('DEL', dead .. ':' .. old)
    redis.call('ZREM', dead, old)
  end
end

local function move_chain(chain)
  local key = service .. ':chain:' .. chain.id
  redis.call('HSET', key, 'state', chain.state)
  redis.call('PEXPIRE', key, stored)
  local job = chain.job_id
  if job ~= '' and redis.call('SET', 'arq:job:' .. job, chain.payload, 'PX', stored, 'NX') then
    redis.call('ZADD', chain.queue, now, job)
    wake(chain.queue)
  end
end

local function finish(queue, id, token, kind, document, milliseconds)
  if not held(id, token) then return 0 end
  redis.call('HDEL', running, id)
  if kind == 'retry' or kind == 'release' then
    redis.call('DEL', 'arq:in-progress:' .. id)
    redis.call('ZADD', queue, 'XX', now + milliseconds, id)
    local expires = milliseconds + stored
    redis.call('PEXPIRE', 'arq:job:' .. id, expires)
    redis.call('PEXPIRE', 'arq:retry:' .. id, expires)
    if kind == 'release' then redis.call('DECR', 'arq:retry:' .. id) end
    if milliseconds <= 0 then wake(queue) end
    return 1
  end
  redis.call('SET', 'arq:result:' .. id, document, 'PX', milliseconds)
  redis.call('DEL', 'arq:job:' .. id, 'arq:in-progress:' .. id, 'arq:retry:' .. id)
  redis.call('ZREM', queue, id)
  -- An abort that came too late must not meet the next job of this id.
  if aborts then redis.call('ZREM', 'arq:abort', id) end
  if kind == 'dead' then pcall(bury, id, document) end
  return 1
end

local replies = {}
for i = 5, #ARGV, 7 do
  local ok, reply = pcall(finish, ARGV[i], ARGV[i + 1], ARGV[i + 2], ARGV[i + 3], ARGV[i + 4],
    tonumber(ARGV[i + 5]))
  if ok and reply == 1 and ARGV[i + 6] ~= '' then
    local moved, problem = pcall(move_chain, cjson.decode(ARGV[i + 6]))
    if not moved then ok, reply = false, problem end
  end
  if not ok then reply = type(reply) == 'table' and reply.err or tostring(reply) end
  replies[#replies + 1] = reply
end
return replies
