-- The priced work of :accounts from :since up to but without :until, each account's by time. A capture keeps the id of its authorization,
-- which may be a week older than the work: ids begin ten days before.
select r.account_id, r.id, r.event_at, r.model_id, r.feature_id, coalesce(g.rate_card_id, r.rate_card_id), coalesce(g.price_ids, r.price_ids),
  r.quantities, r.service_level, r.counts::text, coalesce(g.cost_nanos, r.cost_nanos), coalesce(g.price_nanos, r.price_nanos),
  coalesce(g.value_nanos, r.value_nanos), coalesce(g.waived_nanos, r.waived_nanos)
from usage_record r
left join usage_rating g on r.outcome = 'unpriced' and g.account_id = r.account_id and g.usage_id = r.id
where r.account_id = any (%(accounts)s) and r.id >= first_id(%(since)s::timestamptz - interval '10 days')
  and r.event_at >= %(since)s and r.event_at < %(until)s and (r.outcome in ('captured', 'recorded') or g.usage_id is not null)
order by r.account_id, r.event_at, r.id
