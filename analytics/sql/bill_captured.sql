-- What we recorded of :models on the UTC days from :since up to but without :until, added up by day, model, service level, state and the set
-- of price rows it was rated with: the records, the captures that wait for a price, and the holds that nobody ever captured. Time goes with
-- the records of these days (the BRIN index on event_at), whatever else there is.
with used as (
  select (u.event_at at time zone 'UTC')::date as day, u.model_id, coalesce(u.service_level, 'standard') as level,
    case
      when u.outcome = 'timed_out' then 'timed_out'
      when coalesce(u.cost_nanos, r.cost_nanos) is null then 'unpriced'
      else 'priced'
    end as state,
    case when u.outcome = 'timed_out' then null else coalesce(r.price_ids, u.price_ids) end as price_ids,
    coalesce(u.cost_nanos, r.cost_nanos) as cost_nanos, u.quantities as q
  from usage_record u left join usage_rating r on u.outcome = 'unpriced' and r.account_id = u.account_id and r.usage_id = u.id
  where u.event_at >= %(start)s and u.event_at < %(end)s and u.model_id = any(%(models)s)
    and u.outcome in ('captured', 'recorded', 'unpriced', 'timed_out')
  union all
  select (a.created_at at time zone 'UTC')::date, a.model_id, 'standard',
    case when a.state = 'awaiting_price' then 'unpriced' else 'timed_out' end, null, null, coalesce(a.captured, '{}')
  from open_authorization a
  where a.created_at >= %(start)s and a.created_at < %(end)s and a.model_id = any(%(models)s) and a.state in ('awaiting_price', 'timed_out')
)
select day, model_id, level, state, price_ids, count(*), coalesce(sum(cost_nanos), 0),
  array[
    coalesce(sum(q[1]), 0), coalesce(sum(q[2]), 0), coalesce(sum(q[3]), 0), coalesce(sum(q[4]), 0), coalesce(sum(q[5]), 0),
    coalesce(sum(q[6]), 0), coalesce(sum(q[7]), 0), coalesce(sum(q[8]), 0), coalesce(sum(q[9]), 0), coalesce(sum(q[10]), 0),
    coalesce(sum(q[11]), 0), coalesce(sum(q[12]), 0), coalesce(sum(q[13]), 0), coalesce(sum(q[14]), 0), coalesce(sum(q[15]), 0)
  ]
from used
group by day, model_id, level, state, price_ids
