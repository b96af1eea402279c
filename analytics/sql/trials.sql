-- The trials of a product (:product; null is all) that ended from :since until before :until: whose, from when until when, and from when the
-- account paid after it, within :grace of its end. A trial that goes on on another plan is one trial.
with stretches as (
  select t.account_id, min(t.from_at) as began, max(least(coalesce(t.until_at, 'infinity'), coalesce(t.lapses_at, 'infinity'))) as ended
  from analytics_subscriptionterm t
  join billing_subscription s on s.id = t.subscription_id
  join accounts_account a on a.id = t.account_id
  where t.status = 'trialing' and (%(product)s::bigint is null or a.product_id = %(product)s)
  group by t.account_id, coalesce(s.stripe_id, s.id::text)
)
select account_id, began, ended, (
  select min(r.from_at) from subscription_revenue r
  where r.account_id = stretches.account_id and r.from_at >= began and r.from_at <= ended + %(grace)s and r.until_at > ended)
from stretches
where ended >= %(since)s and ended < %(until)s
order by ended desc, account_id
