-- How many records of :models on the given UTC day equal another one in account, instant, quantities and references, under another key.
select coalesce(sum(same - 1), 0)::bigint
from (
  select count(*) as same from usage_record
  where event_at >= %(start)s and event_at < %(end)s and model_id = any(%(models)s) and outcome in ('captured', 'recorded')
  group by account_id, model_id, event_at, quantities, user_ref, session_ref, run_ref
  having count(*) > 1
) equal
