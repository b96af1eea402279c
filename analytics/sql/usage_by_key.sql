-- The work of which a client app's Idempotency-Key is :key_hash, finished or open, of the newest :most accounts: one look by index into the
-- rows of each, for a key is unique within its account alone.
select a.id, u.id
from (select id from accounts_account order by id desc limit %(most)s) a
  cross join lateral (
    select r.id from usage_record r where r.account_id = a.id and r.key_hash = %(key_hash)s
    union all
    select o.id from open_authorization o where o.account_id = a.id and o.key_hash = %(key_hash)s
  ) u
limit %(limit)s
