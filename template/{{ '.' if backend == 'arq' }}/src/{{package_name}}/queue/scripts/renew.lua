#!lua flags=allow-oom
-- Renew the leases of a worker's jobs, each only if the job is still its own.
-- ARGV: service, lease in milliseconds; for each job: queue, id, token.
-- Returns the ids of the jobs that are not.
local running, lease = ARGV[1] .. ':running', tonumber(ARGV[2])
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local lost = {}

local function renew(queue, id, token)
  local mark = 'arq:in-progress:' .. id
  local read, holder = pcall(redis.call, 'GET', mark)
  if not (read and holder) then
    -- The lease has ended. If nobody has claimed the job since, it goes on.
    local last = redis.call('HGET', running, id)
    holder = last and last:sub(-#token) == token and redis.call('ZSCORE', queue, id) and token
  end
  if holder ~= token then return false end
  redis.call('SET', mark, token, 'PX', lease)
  redis.call('HSET', running, id, token)
  redis.call('ZADD', queue, 'XX', now + lease, id)
  return true
end

for i = 3, #ARGV, 3 do
  local ok, renewed = pcall(renew, ARGV[i], ARGV[i + 1], ARGV[i + 2])
  if not (ok and renewed) then lost[#lost + 1] = ARGV[i + 1] end
end
return lost
