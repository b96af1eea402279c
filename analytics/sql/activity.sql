-- How accounts of a product (:product; null is all) used it on the UTC days from :since up to but without :until. The first row is the whole
-- period: accounts, records, and how many accounts made so many records that their number has 1, 2, 3, 4 … digits; then each day's accounts
-- and records.
with used as (
  select l.account_id, l.day, sum(l.records) as records
  from live_rollup_account l join accounts_account a on a.id = l.account_id
  where l.day >= %(since)s and l.day < %(until)s and (%(product)s::bigint is null or a.product_id = %(product)s)
  group by 1, 2
  having sum(l.records) > 0
), sizes as (
  select length(sum(records)::text) as digits, sum(records) as records from used group by account_id
)
select null::date, count(*), coalesce(sum(records), 0)::bigint, array[
  count(*) filter (where digits = 1), count(*) filter (where digits = 2), count(*) filter (where digits = 3), count(*) filter (where digits >= 4)]
from sizes
union all
(select day, count(*), sum(records)::bigint, null from used group by 1 order by 1)
