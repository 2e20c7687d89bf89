#!lua flags=allow-oom
-- End attempts, each only if its worker still holds the job: a result that comes too late is dropped.
-- ARGV: service, how long jobs are stored, how many dead jobs are kept and how long, how many finished
-- jobs are listed; then for each attempt: queue, id, token, kind, document, milliseconds; '' or the
-- chain as JSON: its id and state, and the queue, id and payload of the next step; task and status of
-- a job that ends; the milliseconds that it took (-1: it never began) and waited. Kinds: 'end' (store
-- the result), 'dead' (also among the dead jobs), 'retry' (due again after the milliseconds), 'release'
-- (due now, and not counted as an attempt).
-- Returns for each attempt 1, 0 where the job is held by another, or the text of an error.
local service, stored, max_dead, keep_dead = ARGV[1], ARGV[2], tonumber(ARGV[3]), ARGV[4]
local running, dead, finished = service .. ':running', service .. ':dead', service .. ':finished'
local MINUTES_KEPT = 7200000
-- Those of monitoring.py, in milliseconds.
local BOUNDS = {
  5, 10, 25, 50, 100, 250, 500, 1000, 2500, 5000, 10000, 30000, 60000, 300000, 1800000,
}
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local aborts = redis.call('TYPE', 'arq:abort').ok == 'zset'
-- The jobs that end here, their keys, and those of each queue: removed at the end, all at once.
local ended, keys, left = {}, {}, {}

local function wake(queue)
  redis.call('LPUSH', queue .. ':wake', 1)
  redis.call('LTRIM', queue .. ':wake', 0, 0)
end

local function held(id, token)
  if ended[id] then return false end
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
  if redis.call('EXISTS', key) == 1 then
    redis.call('HSET', key, 'state', chain.state)
    redis.call('PEXPIRE', key, stored)
  end
  local job = chain.job_id
  if job ~= '' and redis.call('SET', 'arq:job:' .. job, chain.payload, 'PX', stored, 'NX') then
    redis.call('ZADD', chain.queue, now, job)
    wake(chain.queue)
  end
end

local function finish(queue, id, token, kind, document, milliseconds)
  if not held(id, token) then return 0 end
  if kind == 'retry' or kind == 'release' then
    redis.call('HDEL', running, id)
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
  ended[id], ended[#ended + 1] = true, id
  for _, kept in ipairs({'job', 'in-progress', 'retry'}) do
    keys[#keys + 1] = 'arq:' .. kept .. ':' .. id
  end
  left[queue] = left[queue] or {}
  table.insert(left[queue], id)
  -- An abort that came too late must not meet the next job of this id.
  if aborts then redis.call('ZREM', 'arq:abort', id) end
  if kind == 'dead' then pcall(bury, id, document) end
  return 1
end

-- The indexes are written once for all jobs that end here.
local groups, listed = {}, {}

local function observe(histogram, milliseconds)
  local bucket = 0
  while milliseconds > (BOUNDS[bucket + 1] or math.huge) do bucket = bucket + 1 end
  histogram[bucket] = (histogram[bucket] or 0) + 1
  histogram.sum = (histogram.sum or 0) + milliseconds
end

local function count(id, group, took, waited)
  local sums = groups[group] or {jobs = 0, duration = {}, wait = {}}
  groups[group] = sums
  sums.jobs = sums.jobs + 1
  if took >= 0 then
    observe(sums.duration, took)
    observe(sums.wait, waited)
  end
  listed[#listed + 1] = group .. ' ' .. id
end

-- Run a command on an index. One of another type is nobody's, and is dropped.
local function write(command, key, ...)
  local reply = redis.pcall(command, key, ...)
  if type(reply) ~= 'table' or not reply.err then return end
  redis.call('DEL', key)
  redis.call(command, key, ...)
end

local function write_indexes()
  local figures, minute = service .. ':figures', service .. ':minute:' .. math.floor(now / 60000)
  for group, sums in pairs(groups) do
    local task, status = group:match('^(%S+) (%S+)$')
    write('HINCRBY', figures, task .. ':' .. status, sums.jobs)
    for _, name in ipairs({'duration', 'wait'}) do
      for bucket, number in pairs(sums[name]) do
        write('HINCRBY', figures, task .. ':' .. name .. ':' .. bucket, number)
      end
    end
    if status ~= 'aborted' then
      write('INCRBY', minute .. ':' .. status, sums.jobs)
      redis.call('PEXPIRE', minute .. ':' .. status, MINUTES_KEPT)
    end
  end
  write('LPUSH', finished, unpack(listed))
  redis.call('LTRIM', finished, 0, ARGV[5] - 1)
end

local function remove_ended()
  redis.pcall('HDEL', running, unpack(ended))
  redis.call('DEL', unpack(keys))
  for queue, ids in pairs(left) do redis.pcall('ZREM', queue, unpack(ids)) end
end

local replies = {}
for i = 6, #ARGV, 10 do
  local ok, reply = pcall(finish, ARGV[i], ARGV[i + 1], ARGV[i + 2], ARGV[i + 3], ARGV[i + 4],
    tonumber(ARGV[i + 5]))
  if ok and reply == 1 and ARGV[i + 7] ~= '' then
    count(ARGV[i + 1], ARGV[i + 7], tonumber(ARGV[i + 8]), tonumber(ARGV[i + 9]))
  end
  if ok and reply == 1 and ARGV[i + 6] ~= '' then
    local moved, problem = pcall(move_chain, cjson.decode(ARGV[i + 6]))
    if not moved then ok, reply = false, problem end
  end
  if not ok then reply = type(reply) == 'table' and reply.err or tostring(reply) end
  replies[#replies + 1] = reply
end
if #ended > 0 then remove_ended() end
if #listed > 0 then pcall(write_indexes) end
return replies
