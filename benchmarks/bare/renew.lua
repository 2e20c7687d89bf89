#!lua flags=allow-oom
-- There are no leases to renew.
return {}
