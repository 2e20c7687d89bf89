-- Put a job among the dead letters, and forget the oldest.
-- KEYS: the index. ARGV: the prefix of letters, the job's id, its result, how long it is kept in
-- milliseconds, the time, how many are kept.
redis.call('SET', ARGV[1] .. ARGV[2], ARGV[3], 'PX', ARGV[4])
redis.call('ZADD', KEYS[1], ARGV[5], ARGV[2])
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', ARGV[5] - ARGV[4])
for _, id in ipairs(redis.call('ZRANGE', KEYS[1], 0, -1 - ARGV[6])) do
  redis.call('DEL', ARGV[1] .. id)
  redis.call('ZREM', KEYS[1], id)
end
