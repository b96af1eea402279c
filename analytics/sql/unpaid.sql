-- The plans of a product (:product; null is all) whose payment failed from :since until before :until: whose, when, what is paid for it a
-- month, until when it was unpaid (null: it still is at :now) and whether it was paid then. What changes while it is unpaid is one stretch.
with terms as (
  select t.*, count(*) filter (where t.status <> 'past_due') over (partition by t.subscription_id order by t.from_at) as stretch
  from analytics_subscriptionterm t join accounts_account a on a.id = t.account_id
  where %(product)s::bigint is null or a.product_id = %(product)s
), stretches as (
  select account_id, min(from_at) as failed, max(least(coalesce(until_at, 'infinity'), coalesce(lapses_at, 'infinity'))) as ended,
    (array_agg(id order by from_at))[1] as first_id
  from terms where status = 'past_due'
  group by account_id, subscription_id, stretch
)
select account_id, failed, coalesce((select sum(mrr_nanos)::bigint from subscription_revenue r where r.term_id = first_id), 0),
  case when ended <= %(now)s then ended end,
  ended <= %(now)s and exists (
    select from analytics_subscriptionterm t
    where t.account_id = stretches.account_id and t.status = 'active' and t.from_at >= ended and t.from_at < ended + interval '1 hour'
      and exists (select from subscription_revenue r where r.term_id = t.id))
from stretches
where failed >= %(since)s and failed < %(until)s
order by failed desc, account_id
