#!lua flags=allow-oom
-- Let somebody emit who is no node: a producer in no set, so that nobody is told of it, for as long as it takes.
-- KEYS: producer hash. ARGV: its time to live in ms.
redis.call('HSETNX', KEYS[1], 'batch', '-1')
redis.call('PEXPIRE', KEYS[1], ARGV[1])
return 1
