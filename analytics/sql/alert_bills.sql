-- Bills of providers that end from :since on, and what we recorded for the same days, nano-USD. Of several for the same days the last one.
select b.provider, b.since, b.until, b.billed_nanos,
  coalesce((
    select sum(l.cost_nanos) from live_rollup_model l join metering_usagemodel m on m.id = l.model_id
    where m.provider = b.provider and l.day >= b.since and l.day < b.until), 0)::bigint
from (
  select distinct on (provider, since, until) * from analytics_providerbill where until >= %(since)s
  order by provider, since, until, entered_at desc, id desc
) b
where b.billed_nanos > 0
