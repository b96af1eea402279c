-- What of each meter was used in windows that had begun before :since: :begun are accounts, :meters and :starts their windows.
select t.account_id, t.meter, sum(usage_delta(t.meter, coalesce(r.cost_nanos, 0), 1, r.counts, 1))::bigint
from unnest(%(begun)s::bigint[], %(meters)s::text[], %(starts)s::timestamptz[]) t (account_id, meter, starts)
join usage_record r on r.account_id = t.account_id and coalesce(r.counted_at, r.event_at) >= t.starts and coalesce(r.counted_at, r.event_at) < %(since)s
where r.outcome in ('captured', 'recorded', 'unpriced')
group by 1, 2
