#!lua flags=allow-oom
-- Let somebody emit who is no node: a leased hash with a token, in no set, so that nobody is told of it.
-- KEYS: node hash. ARGV: token, lease in ms.
redis.call('HSET', KEYS[1], 'token', ARGV[1])
redis.call('PEXPIRE', KEYS[1], ARGV[2])
return 1
