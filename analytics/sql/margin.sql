-- What was earned per model, product, feature or day (:by) on the UTC days from :since up to but without :until; the first row is the
-- total of all, then up to :limit groups: days in order, the rest by revenue, or all by the
-- share of it that is margin (:least), the least first, payment fees in it or not (:fees). :product null is all products.
with figures as (
  select
    case %(by)s
      when 'model' then model_id::bigint when 'product' then product_id when 'feature' then feature_id::bigint else (day - date '1970-01-01')::bigint
    end as key,
    records, tokens, cost_nanos, value_nanos, cash_nanos, fee_nanos
  from live_rollup_model
  where day >= %(since)s and day < %(until)s and (%(product)s::bigint is null or product_id = %(product)s)
), sums as (
  select grouping(key) as total, key, coalesce(sum(records), 0)::bigint as records, coalesce(sum(tokens), 0)::bigint as tokens,
    coalesce(sum(cost_nanos), 0)::bigint as cost_nanos, coalesce(sum(value_nanos), 0)::bigint as value_nanos,
    coalesce(sum(cash_nanos), 0)::bigint as cash_nanos, coalesce(sum(fee_nanos), 0)::bigint as fee_nanos, count(*) over () - 1 as groups
  from figures
  group by grouping sets ((key), ())
)
select
  case %(by)s
    when 'model' then m.provider || ':' || m.name when 'product' then p.slug when 'feature' then fp.slug || '/' || f.slug
    else (date '1970-01-01' + s.key::int)::text end,
  case %(by)s
    when 'model' then m.provider || ':' || m.name when 'product' then p.name when 'feature' then f.slug
    else (date '1970-01-01' + s.key::int)::text end,
  s.records, s.tokens, s.cost_nanos, s.value_nanos, s.cash_nanos, s.fee_nanos, s.groups
from sums s
  left join metering_usagemodel m on %(by)s = 'model' and m.id = s.key
  left join pricing_product p on %(by)s = 'product' and p.id = s.key
  left join metering_feature f on %(by)s = 'feature' and f.id = s.key
  left join pricing_product fp on fp.id = f.product_id
order by s.total desc, case when %(by)s = 'day' and not %(least)s then s.key end,
  case when %(least)s then (s.value_nanos - s.cost_nanos - case when %(fees)s then s.fee_nanos else 0 end)::numeric / nullif(s.value_nanos, 0) end nulls first,
  s.value_nanos desc, s.cost_nanos desc, s.key
limit %(limit)s + 1
