#!lua flags=allow-oom
-- Claim due jobs for a worker, queue by queue: lease each, count the attempt, return its payload.
-- ARGV: service, worker, lease, most bytes of payloads, how many suspects may be claimed (0: claim
-- others), 1 if the worker is idle, how many queues; for each queue: key, free slots; for each rate
-- limit: task, count, milliseconds. Returns the time, when the next job is due (0: none), 1 if this
-- worker should claim suspects next, the jobs, and the texts of errors.
--
-- A running job's score is the end of its lease: it leaves the head of the queue, and is due again by
-- itself when its worker is lost. Such a job is a suspect: it may have killed its worker. It is never
-- claimed beside others, so that it cannot take them along again.
local service, worker, lease, bytes_left = ARGV[1], ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4])
local suspects_allowed, idle, queues = tonumber(ARGV[5]), ARGV[6] == '1', tonumber(ARGV[7])
local running = service .. ':running'
local STORED = 2592000000
local POSTPONED = 1000
local MARGIN = 50 -- between a claim and the start of its task
local LOOKS = 20
local MOST_AT_ONCE = 1000 -- more values than Lua's `unpack` can return would be too many
local FORGIVEN = 2
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local limits = {}
for i = 8 + 2 * queues, #ARGV, 3 do
  limits[ARGV[i]] = {count = tonumber(ARGV[i + 1]), span = tonumber(ARGV[i + 2])}
end
local claimed, claim_suspects_next, errors = {}, 0, {}
local aborts -- whether any job is to be aborted

local function task_of(payload)
  local name = payload:match('^{"t":%w+,"f":"([%w_]+)"')
  if name then return name end
  local ok, job = pcall(cjson.decode, payload)
  return ok and type(job) == 'table' and job.f or nil
end

-- Return nil if the task may start a job now, else the time at which this job may try again. Those
-- that wait get times one after the other, and are checked again when they come.
local function rate_limited(name, limit)
  local starts = service .. ':rate:' .. name
  local oldest = redis.call('LINDEX', starts, limit.count - 1)
  local free_at = oldest and oldest + limit.span + MARGIN or now
  if free_at <= now then
    redis.call('LPUSH', starts, now)
    redis.call('LTRIM', starts, 0, limit.count - 1)
    redis.call('PEXPIRE', starts, limit.span + MARGIN)
    return nil
  end
  local last = tonumber(redis.call('GET', starts .. ':waiting') or 0)
  local try_at = math.max(free_at, last + math.ceil(limit.span / limit.count))
  redis.call('SET', starts .. ':waiting', try_at, 'PX', try_at - now + limit.span)
  return try_at
end

-- Mark all jobs of a lost worker. One that was alone with its worker has used up an attempt; the
-- others may be innocent, and are forgiven twice.
local function mark_lost(lost)
  local held = redis.call('HGETALL', running)
  local ids = {}
  for i = 1, #held, 2 do
    if held[i + 1]:sub(1, #lost + 1) == lost .. ':' then
      ids[#ids + 1] = {held[i], held[i + 1]}
    end
  end
  for _, each in ipairs(ids) do
    local crashes = (each[2]:match(':(%d+)$') or 0) + 1
    local kind = (#ids == 1 or crashes > FORGIVEN) and 'counts' or 'forgiven'
    redis.call('HSET', running, each[1], 'lost:' .. crashes .. ':' .. kind .. ':' .. each[2])
  end
end

-- Return the number of the attempt, and what is wrong with the number that is stored.
local function count_attempt(id, counted)
  local attempts = 'arq:retry:' .. id
  if redis.call('SET', attempts, 1, 'PX', STORED, 'NX') then return 1, '' end
  local read, attempt = pcall(redis.call, counted and 'INCR' or 'GET', attempts)
  attempt = read and tonumber(attempt)
  if attempt and attempt >= 1 and attempt <= 1e6 then
    redis.call('PEXPIRE', attempts, STORED)
    return attempt, ''
  end
  redis.call('SET', attempts, 1, 'PX', STORED)
  return 1, read and '' or 'its number of attempts cannot be read'
end

-- The leases of the jobs that were just claimed from one queue: written all at once.
local leased, moved = {}, {}

local function write_leases(queue)
  if #leased == 0 then return end
  redis.call('HSET', running, unpack(leased))
  redis.call('ZADD', queue, 'XX', unpack(moved))
  leased, moved = {}, {}
end

local function claim(queue, id, due, crashes, counted)
  local problem = ''
  local got, payload = pcall(redis.call, 'GET', 'arq:job:' .. id)
  if not got then problem = 'its stored job is not a string' end
  payload = got and payload
  if aborts and redis.call('ZSCORE', 'arq:abort', id) then problem = 'aborted' end
  local limit = payload and problem == '' and next(limits) and limits[task_of(payload)]
  if limit then
    local try_at = rate_limited(task_of(payload), limit)
    if try_at then
      redis.call('ZADD', queue, 'XX', try_at, id)
      return
    end
  end
  local attempt, unreadable = count_attempt(id, counted)
  if unreadable ~= '' then problem = unreadable end
  local token = worker .. ':' .. attempt .. ':' .. now .. ':' .. crashes
  redis.call('SET', 'arq:in-progress:' .. id, token, 'PX', lease)
  leased[#leased + 1], leased[#leased + 2] = id, token
  moved[#moved + 1], moved[#moved + 2] = now + lease, id
  bytes_left = bytes_left - (payload and #payload or 0)
  claimed[#claimed + 1] = {queue, id, due, attempt, token, payload or false, problem}
end

-- Look at a due job: claim it, or give it a later time.
local function look(queue, id, due, holder)
  local lease_left = redis.call('PTTL', 'arq:in-progress:' .. id)
  if lease_left > 0 then -- it runs, and ARQ's abort or an ARQ worker has left its score in the past
    redis.call('ZADD', queue, 'XX', now + math.min(lease_left, lease), id)
    return
  end
  if holder and (holder:match('^lost:%d+:%a+:') or holder:match('^%w+:%d+:%d+:%d+$')) then
    if holder:sub(1, 5) ~= 'lost:' then mark_lost(holder:match('^[^:]*')) end
    redis.call('ZADD', queue, 'XX', now + POSTPONED, id)
    -- Idle workers take suspects at once; of the busy ones, one at a time ends its jobs for them.
    local quarantine = service .. ':quarantine'
    if idle or redis.call('GET', quarantine) == worker
      or redis.call('SET', quarantine, worker, 'NX', 'PX', lease) then
      claim_suspects_next = 1
    end
    return
  end
  claim(queue, id, due, 0, true)
end

local function is_paused(queue) return redis.pcall('SISMEMBER', service .. ':paused', queue) == 1 end

-- Claim suspects: several that were lost once, or a single one that was lost more often.
local function claim_suspects()
  local held, lost_once, lost_again = redis.call('HGETALL', running), {}, nil
  for i = 1, #held, 2 do
    local crashes, kind = held[i + 1]:match('^lost:(%d+):(%a+):')
    if crashes and redis.call('PTTL', 'arq:in-progress:' .. held[i]) <= 0 then
      for q = 1, queues do
        local score = redis.call('ZSCORE', ARGV[6 + 2 * q], held[i])
        if score and not is_paused(ARGV[6 + 2 * q]) then
          local suspect = {ARGV[6 + 2 * q], held[i], score, crashes, kind == 'counts'}
          if tonumber(crashes) == 1 then lost_once[#lost_once + 1] = suspect
          else lost_again = suspect end
        end
      end
    end
  end
  if #lost_once == 0 and lost_again then lost_once = {lost_again} end
  for i = 1, math.min(#lost_once, suspects_allowed) do
    claim(unpack(lost_once[i]))
    write_leases(lost_once[i][1])
  end
end

local function prepare()
  aborts = redis.call('TYPE', 'arq:abort').ok == 'zset'
  -- An index of another type is nobody's: it would stop all workers.
  local kind = redis.call('TYPE', running).ok
  if kind ~= 'hash' and kind ~= 'none' then redis.call('DEL', running) end
end

local function first_due(queue)
  local first = redis.call('ZRANGE', queue, 0, 0, 'WITHSCORES')[2]
  return first and tonumber(first)
end

-- Return what `running` has of jobs, in their order.
local function holders_of(due)
  local ids = {}
  for i = 1, #due, 2 do ids[#ids + 1] = due[i] end
  return #ids > 0 and redis.call('HMGET', running, unpack(ids)) or ids
end

-- Claim due jobs of a queue for free slots; return when the next one is due, or nil.
local function claim_due(queue, slots)
  local first = first_due(queue)
  if not first or first > now then return first end
  if is_paused(queue) then return nil end
  if aborts == nil then prepare() end
  local filled = #claimed + slots
  for _ = 1, LOOKS do
    local wanted = math.min(filled - #claimed, MOST_AT_ONCE)
    if wanted <= 0 or bytes_left <= 0 then break end
    local due = redis.call('ZRANGE', queue, '-inf', now, 'BYSCORE', 'LIMIT', 0, wanted, 'WITHSCORES')
    local holders = holders_of(due)
    for i = 1, #due, 2 do
      if bytes_left <= 0 then break end
      local ok, problem = pcall(look, queue, due[i], due[i + 1], holders[(i + 1) / 2])
      if not ok then
        redis.call('ZADD', queue, 'XX', now + POSTPONED, due[i])
        errors[1] = type(problem) == 'table' and problem.err or tostring(problem)
      end
    end
    write_leases(queue)
    if #due < 2 * wanted then break end
  end
  first = first_due(queue)
  if first and first <= now then -- more than this worker takes: wake another
    redis.call('LPUSH', queue .. ':wake', 1)
    redis.call('LTRIM', queue .. ':wake', 0, 0)
  end
  return first
end

local next_due = 0
if suspects_allowed > 0 then
  prepare()
  claim_suspects()
else
  for q = 1, queues do
    local slots = tonumber(ARGV[7 + 2 * q])
    local first = slots > 0 and claim_due(ARGV[6 + 2 * q], slots)
    if first and (next_due == 0 or first < next_due) then next_due = math.max(first, 1) end
  end
end
return {now, next_due, claim_suspects_next, claimed, errors}
