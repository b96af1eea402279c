-- The credits of :accounts in :unit: each grant with what was left of it at :since (its remainder now, less all that moved since).
select g.account_id, g.id, g.source, g.granted, g.priority, nullif(g.expires_at, 'infinity'), g.cash_nanos, nullif(g.rollover_expires_at, 'infinity'),
  g.rollover_cap, g.rollover_priority, g.remaining - coalesce(m.moved, 0)
from credit_grant g
left join (
  select e.account_id, e.grant_id, sum(e.amount)::bigint as moved
  from ledger_entry e
  where e.account_id = any (%(accounts)s) and e.unit_id = %(unit)s and e.recorded_at >= %(since)s and e.grant_id is not null
  group by 1, 2) m on m.account_id = g.account_id and m.grant_id = g.id
where g.account_id = any (%(accounts)s) and g.unit_id = %(unit)s and (not g.closed or m.grant_id is not null)
