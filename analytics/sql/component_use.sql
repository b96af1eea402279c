-- What of one component (:position) of a model was used at a service level since :since, and the list value of all that the model was used
-- for: the days since then of the summary of time blocks, never all of history.
select coalesce(sum(u.quantities[%(position)s]) filter (where coalesce(u.service_level, 'standard') = %(level)s), 0)::bigint,
  coalesce(sum(coalesce(r.value_nanos, u.value_nanos)), 0)::bigint
from usage_record u
join metering_usagemodel m on m.id = u.model_id
left join usage_rating r on u.outcome = 'unpriced' and r.account_id = u.account_id and r.usage_id = u.id
where u.event_at >= %(since)s and m.provider = %(provider)s and m.name = %(model)s and u.outcome in ('captured', 'recorded', 'unpriced')
