-- Where folded + not yet folded is not what a recount says. One statement, so one snapshot. Figures: records, tokens, cost, price, value,
-- cash, fee. :tokens are the positions of usage_record.quantities that count tokens.
with recount as materialized (
  select * from recount_usage(%(tokens)s)
), counted as (
  select 'model' as rollup, product_id, day, model_id::bigint as key, feature_id,
    array[sum(records), sum(tokens), sum(cost_nanos), sum(price_nanos), sum(value_nanos), sum(cash_nanos), sum(fee_nanos)]::bigint[] as figures
  from recount group by 2, 3, 4, 5
  union all
  select 'account', product_id, day, account_id, 0,
    array[sum(records), sum(tokens), sum(cost_nanos), sum(price_nanos), sum(value_nanos), sum(cash_nanos), sum(fee_nanos)]::bigint[]
  from recount group by 2, 3, 4
), live as (
  select 'model' as rollup, product_id, day, model_id::bigint as key, feature_id,
    array[sum(records), sum(tokens), sum(cost_nanos), sum(price_nanos), sum(value_nanos), sum(cash_nanos), sum(fee_nanos)]::bigint[] as figures
  from live_rollup_model group by 2, 3, 4, 5
  union all
  select 'account', a.product_id, l.day, l.account_id, 0,
    array[sum(records), sum(tokens), sum(cost_nanos), sum(price_nanos), sum(value_nanos), sum(cash_nanos), sum(fee_nanos)]::bigint[]
  from live_rollup_account l join accounts_account a on a.id = l.account_id group by 2, 3, 4
)
select rollup, product_id, day, key, feature_id, coalesce(live.figures, '{0,0,0,0,0,0,0}'), coalesce(counted.figures, '{0,0,0,0,0,0,0}')
from live full join counted using (rollup, product_id, day, key, feature_id)
where coalesce(live.figures, '{0,0,0,0,0,0,0}') <> coalesce(counted.figures, '{0,0,0,0,0,0,0}')
order by 1, 2, 3, 4, 5
