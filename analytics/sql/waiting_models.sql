-- Usage that waits for a price, by model: at most :limit records and as many captures, in the order of the index of unpriced records.
-- :tokens are the positions of usage_record.quantities that count tokens.
select m.provider, m.name, count(*), sum((select coalesce(sum(q), 0) from unnest(w.quantities) with ordinality t (q, i) where i = any (%(tokens)s)))::bigint,
  count(distinct w.account_id), min(w.at)
from (
  (select u.account_id, u.model_id, u.quantities, u.event_at as at from usage_record u
   where u.outcome = 'unpriced' and not exists (select from usage_rating r where r.account_id = u.account_id and r.usage_id = u.id)
   order by u.account_id, u.id
   limit %(limit)s)
  union all
  (select o.account_id, o.model_id, o.captured, o.captured_at from open_authorization o
   where o.state = 'awaiting_price'
   limit %(limit)s)
) w join metering_usagemodel m on m.id = w.model_id
group by 1, 2
order by 3 desc, 1, 2
