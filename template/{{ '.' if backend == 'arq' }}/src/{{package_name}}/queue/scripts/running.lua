#!lua flags=no-writes
-- Return the time, and of the jobs that run the id, the token and the number of the queue.
-- ARGV: service, at most how many; the keys of the queues.
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local found, held = {}, redis.pcall('HRANDFIELD', ARGV[1] .. ':running', ARGV[2], 'WITHVALUES')
for i = 1, #held, 2 do
  for q = 3, #ARGV do
    local lease_ends = redis.pcall('ZSCORE', ARGV[q], held[i])
    if type(lease_ends) == 'string' and tonumber(lease_ends) > now then
      found[#found + 1] = {held[i], held[i + 1], q - 3}
    end
  end
end
return {now, found}
