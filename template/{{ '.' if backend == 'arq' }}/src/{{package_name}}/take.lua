-- Take a dead letter away, and enqueue its job again if there is one.
-- KEYS: the letter, the result, the job, the index, the queue. ARGV: the job's id, the job or
-- nothing, how long it may wait in milliseconds, the time.
if redis.call('DEL', KEYS[1]) == 0 then return 0 end
redis.call('ZREM', KEYS[4], ARGV[1])
if ARGV[2] ~= '' then
  redis.call('DEL', KEYS[2])
  redis.call('SET', KEYS[3], ARGV[2], 'PX', ARGV[3])
  redis.call('ZADD', KEYS[5], ARGV[4], ARGV[1])
end
return 1
