-- What subscriptions of a product (:product; null is all) bring in a month as of :at, just before it: the total, then each plan, the largest
-- first. Nano-USD.
select p.name, r.plan_id, coalesce(sum(mrr_nanos), 0)::bigint, count(distinct account_id)
from (
  select s.*, v.plan_id from subscription_revenue s join pricing_planversion v on v.id = s.plan_version_id
  where s.from_at < %(at)s and s.until_at >= %(at)s and (%(product)s::bigint is null or s.product_id = %(product)s)
) r left join pricing_plan p on p.id = r.plan_id
group by grouping sets ((p.name, r.plan_id), ())
order by grouping(r.plan_id) desc, 3 desc, 2
