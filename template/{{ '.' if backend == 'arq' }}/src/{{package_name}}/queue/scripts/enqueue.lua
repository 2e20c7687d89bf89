#!lua
-- Enqueue jobs, each unless its id is in use.
-- ARGV: service, time after which nothing is done (0: none), how long jobs are stored, how old the
-- failure of a key must be before the key is free again; then for each job: queue, id, payload,
-- when it is due ('+' and a delay, or a time), kind ('' for a new id, 'unique' or 'key' for one that
-- may be in use). All times in milliseconds. Returns the time, and for each job 1, or
-- 0 and what is stored of it (nothing where a key is of another type).
local service, deadline, stored, failed_key = ARGV[1], tonumber(ARGV[2]), ARGV[3], tonumber(ARGV[4])
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
-- The server hung, and the caller has been told that nothing was enqueued.
if deadline > 0 and now > deadline then return {now, 'late'} end

local wake = {}

-- Return when a job ended that did not succeed: as a dead job, or aborted, or its dead job deleted.
local function failed_at(id, result)
  local died = redis.call('ZSCORE', service .. ':dead', id)
  if died or not result then return died end
  local ok, ended = pcall(cjson.decode, result)
  return ok and type(ended) == 'table' and ended.s == false and tonumber(ended.ft)
end

-- A job that failed long enough ago gives its key back, and must never overwrite its successor.
local function forget_failure(id, wait)
  local result = redis.call('GET', 'arq:result:' .. id)
  local failed = failed_at(id, result)
  if not failed then return end
  if not result or now - failed >= wait then
    redis.call('ZREM', service .. ':dead', id)
    redis.call('DEL', service .. ':dead:' .. id, 'arq:result:' .. id, 'arq:retry:' .. id)
    redis.call('ZREM', 'arq:abort', id)
  end
end

local function enqueue(queue, id, payload, due, kind)
  if kind ~= '' then forget_failure(id, kind == 'key' and failed_key or 0) end
  if redis.call('EXISTS', 'arq:result:' .. id) == 1 then
    return {0, redis.call('GET', 'arq:result:' .. id)}
  end
  local time_due = due:sub(1, 1) == '+' and now + due:sub(2) or tonumber(due)
  due = math.max(time_due, now)
  local expires = due - now + stored
  if not redis.call('SET', 'arq:job:' .. id, payload, 'PX', expires, 'NX') then
    return {0, redis.call('GET', 'arq:job:' .. id)}
  end
  if type(redis.pcall('ZADD', queue, due, id)) ~= 'number' then -- it is no sorted set
    redis.call('DEL', 'arq:job:' .. id)
    return {0, false}
  end
  -- An abort by ARQ's client that came after the end of another job of this id.
  if kind ~= '' then redis.pcall('ZREM', 'arq:abort', id) end
  if due <= now then wake[queue] = true end
  return 1
end

local replies = {now}
for i = 5, #ARGV, 5 do
  local ok, reply = pcall(enqueue, ARGV[i], ARGV[i + 1], ARGV[i + 2], ARGV[i + 3], ARGV[i + 4])
  replies[#replies + 1] = ok and reply or {0, false}
end
for queue in pairs(wake) do
  local length = redis.pcall('LPUSH', queue .. ':wake', 1)
  if type(length) ~= 'number' then redis.call('DEL', queue .. ':wake')
  elseif length > 1 then redis.call('LTRIM', queue .. ':wake', 0, 0) end
end
return replies
