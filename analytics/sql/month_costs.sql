-- What the accounts of a product (:product) used on the UTC days from :since up to but without :until, and what they pay a month. The first
-- row is the total; then the :limit costliest, the :accounts that are named, and those whose cost is at least :share parts per million of
-- what they pay. Paid for are subscriptions that somebody pays (at Stripe, or by an agreement) and that are no trial, of a yearly price the
-- twelfth, and packs that were bought in these days, without what was given back. Nano-USD.
with used as (
  select l.account_id, sum(l.records) as records, sum(l.cost_nanos) as cost
  from live_rollup_account l join accounts_account a on a.id = l.account_id
  where a.product_id = %(product)s and l.day >= %(since)s and l.day < %(until)s
  group by 1
), subscribed as (
  select s.account_id, div(v.price_cents::numeric * 10000000 * case when v.per_seat then s.seats else 1 end,
    case v.interval when 'year' then 12 else 1 end) as price
  from billing_subscription s join pricing_planversion v on v.id = s.plan_version_id join accounts_account a on a.id = s.account_id
  where a.product_id = %(product)s and s.status in ('active', 'past_due') and v.price_cents > 0 and v.currency = 'usd'
    and (s.stripe_id is not null or exists (select from billing_agreement g where g.plan_version_id = v.id))
), packs as (
  select g.account_id, sum(g.cash_nanos - div(g.cash_nanos::numeric * g.refunded, g.granted)) as cash
  from credit_grant g join accounts_account a on a.id = g.account_id
  where a.product_id = %(product)s and g.source = 'purchased' and g.root_id is null and g.currency = 'usd'
    and g.starts_at >= %(since)s::date::timestamp at time zone 'UTC' and g.starts_at < %(until)s::date::timestamp at time zone 'UTC'
  group by 1
), figures as (
  select account_id, coalesce(u.records, 0) as records, coalesce(u.cost, 0) as cost, coalesce(s.price, 0) as price, coalesce(p.cash, 0) as cash
  from used u full join subscribed s using (account_id) full join packs p using (account_id)
), ranked as (
  select *, row_number() over (order by cost desc, account_id) as place from figures
)
select null::bigint as account_id, count(*) filter (where records > 0) as active, count(*) filter (where cost > 0) as with_cost,
  coalesce(sum(cost), 0)::bigint as cost, coalesce(sum(price), 0)::bigint as price, coalesce(sum(cash), 0)::bigint as cash
from figures
union all
(select account_id, (records > 0)::int, (cost > 0)::int, cost::bigint, price::bigint, cash::bigint
 from ranked
 where place <= %(limit)s and cost > 0 or account_id = any (%(accounts)s)
   or price + cash > 0 and cost * 1000000 >= (price + cash) * %(share)s::numeric
 order by place)
