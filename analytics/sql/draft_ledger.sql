-- What the ledger took, or wrote down as debt, for the work of :accounts in the period, and the first :limit records that say otherwise.
with taken as (
  select e.account_id, e.usage_id, sum(e.debt_delta - e.amount) as nanos
  from ledger_entry e
  where e.account_id = any (%(accounts)s) and e.kind in ('usage', 'debt') and e.usage_id is not null
  group by 1, 2
), work as (
  select r.account_id, r.id, coalesce(g.price_nanos, r.price_nanos) as nanos
  from usage_record r left join usage_rating g on r.outcome = 'unpriced' and g.account_id = r.account_id and g.usage_id = r.id
  where r.account_id = any (%(accounts)s) and r.id >= first_id(%(since)s::timestamptz - interval '10 days')
    and r.event_at >= %(since)s and r.event_at < %(until)s and (r.outcome in ('captured', 'recorded') or g.usage_id is not null)
)
select w.account_id, sum(coalesce(t.nanos, 0))::bigint, (array_agg(w.id order by w.id) filter (where w.nanos <> coalesce(t.nanos, 0)))[:%(limit)s]
from work w left join taken t on t.account_id = w.account_id and t.usage_id = w.id
group by 1
