#!lua flags=no-writes
-- Return the beginnings of strings, '' where there is none.
-- ARGV: most bytes of each; their keys.
local found = {}
for i = 2, #ARGV do
  local beginning = redis.pcall('GETRANGE', ARGV[i], 0, ARGV[1] - 1)
  found[i - 1] = type(beginning) == 'string' and beginning or ''
end
return found
