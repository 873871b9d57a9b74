#!lua flags=allow-oom
-- Have a node's blocked read begin anew, also while memory is full. KEYS: inbox.
-- Answers 0 when there is no inbox; none is made, for it would belong to nobody.
return redis.call('XADD', KEYS[1], 'NOMKSTREAM', 'MAXLEN', '~', '100', '*', 'k', 'wake') and 1 or 0
