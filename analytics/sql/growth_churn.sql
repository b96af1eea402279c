-- Of the accounts that paid just before :since, who pays nothing, or less, just before :until. Nano-USD a month.
select count(*), count(*) filter (where after = 0), coalesce(sum(before), 0)::bigint, coalesce(sum(greatest(before - after, 0)), 0)::bigint
from (
  select coalesce(sum(mrr_nanos) filter (where from_at < %(since)s and until_at >= %(since)s), 0) as before,
    coalesce(sum(mrr_nanos) filter (where from_at < %(until)s and until_at >= %(until)s), 0) as after
  from subscription_revenue
  where %(product)s::bigint is null or product_id = %(product)s
  group by account_id
) a
where before > 0
