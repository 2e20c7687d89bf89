#!lua flags=allow-oom
-- Store results and remove the jobs, whoever holds them.
local replies = {}
for i = 6, #ARGV, 10 do
  local id, document, milliseconds = ARGV[i + 1], ARGV[i + 4], ARGV[i + 5]
  redis.call('SET', 'arq:result:' .. id, document, 'PX', milliseconds)
  redis.call('DEL', 'arq:job:' .. id)
  replies[#replies + 1] = 1
end
return replies
