-- The rows behind a figure of a month (:since until before :until) of a product (:product; null is all), :limit of them. :what names the figure:
-- paying (subscriptions at the end), lost (who paid at the beginning and does not at the end), packs (that were sold), or a kind of movement.
-- An account, when, what it paid a month before and after (of a pack: nothing, and what it brought), and the plan's name. Nano-USD.
select account_id, at, before, after, name
from (
  select r.account_id, r.from_at as at, 0::bigint as before, r.mrr_nanos as after, p.name
  from subscription_revenue r join pricing_planversion v on v.id = r.plan_version_id join pricing_plan p on p.id = v.plan_id
  where %(what)s = 'paying' and r.from_at < %(until)s and r.until_at >= %(until)s
    and (%(product)s::bigint is null or r.product_id = %(product)s)
  union all
  select r.account_id, max(least(r.until_at, %(until)s)),
    coalesce(sum(r.mrr_nanos) filter (where r.from_at < %(since)s and r.until_at >= %(since)s), 0)::bigint, 0, ''
  from subscription_revenue r
  where %(what)s = 'lost' and r.from_at < %(until)s and (%(product)s::bigint is null or r.product_id = %(product)s)
  group by 1
  having bool_or(r.from_at < %(since)s and r.until_at >= %(since)s) and not bool_or(r.until_at >= %(until)s)
  union all
  select g.account_id, g.starts_at, 0, (g.cash_nanos - div(g.cash_nanos::numeric * g.refunded, g.granted))::bigint, ''
  from credit_grant g join accounts_account a on a.id = g.account_id
  where %(what)s = 'packs' and g.source = 'purchased' and g.root_id is null and g.currency = 'usd'
    and g.starts_at >= %(since)s and g.starts_at < %(until)s and (%(product)s::bigint is null or a.product_id = %(product)s)
  union all
  select account_id, at, before, after, ''
  from revenue_step
  where kind = %(what)s and at >= %(since)s and at < %(until)s and (%(product)s::bigint is null or product_id = %(product)s)
) found
order by at desc, account_id
limit %(limit)s
