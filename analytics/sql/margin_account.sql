-- What was earned per account on the UTC days from :since up to but without :until; the first row is the total of all, then up to :limit
-- accounts by revenue, or by the share of it that is margin (:least). :product null is all products, :account null is all accounts.
with sums as (
  select grouping(l.account_id) as total, l.account_id, coalesce(sum(l.records), 0)::bigint as records, coalesce(sum(l.tokens), 0)::bigint as tokens,
    coalesce(sum(l.cost_nanos), 0)::bigint as cost_nanos, coalesce(sum(l.value_nanos), 0)::bigint as value_nanos,
    coalesce(sum(l.cash_nanos), 0)::bigint as cash_nanos, coalesce(sum(l.fee_nanos), 0)::bigint as fee_nanos, count(*) over () - 1 as groups
  from live_rollup_account l
  where l.day >= %(since)s and l.day < %(until)s
    and (%(account)s::bigint is null or l.account_id = %(account)s)
    and (%(product)s::bigint is null or l.account_id in (select id from accounts_account where product_id = %(product)s))
  group by grouping sets ((l.account_id), ())
)
select a.public_id, a.name, s.records, s.tokens, s.cost_nanos, s.value_nanos, s.cash_nanos, s.fee_nanos, s.groups
from sums s left join accounts_account a on a.id = s.account_id
order by s.total desc,
  case when %(least)s then (s.value_nanos - s.cost_nanos - case when %(fees)s then s.fee_nanos else 0 end)::numeric / nullif(s.value_nanos, 0) end nulls first,
  s.value_nanos desc, s.cost_nanos desc, s.account_id
limit %(limit)s + 1
