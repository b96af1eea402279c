-- The accounts of a product (:product; null is all) that signed up in each month from :first on (UTC), and what became of them in each month
-- since, up to the present one: how many used it, how many paid a subscription at the month's end and what it came to a month, and what
-- packs they bought came to, less refunds. Guests have not signed up. One row a cohort and month; nano-USD.
with months as (
  select m::date as month, least((m + interval '1 month') at time zone 'UTC', %(now)s) as ends
  from generate_series(%(first)s::date::timestamp, (%(now)s at time zone 'UTC')::timestamp, interval '1 month') m
), signed as (
  select id, date_trunc('month', created_at at time zone 'UTC')::date as cohort
  from accounts_account
  where kind <> 'guest' and created_at >= %(first)s::date::timestamp at time zone 'UTC' and created_at < %(now)s
    and (%(product)s::bigint is null or product_id = %(product)s)
), sizes as (
  select cohort, count(*) as accounts from signed group by 1
), used as (
  select s.cohort, l.month, count(*) as active
  from (
    select account_id, date_trunc('month', day::timestamp)::date as month from live_rollup_account where day >= %(first)s and records > 0 group by 1, 2) l
    join signed s on s.id = l.account_id
  group by 1, 2
), kept as (
  select s.cohort, m.month, count(distinct r.account_id) as paying, sum(r.mrr_nanos) as mrr
  from months m join subscription_revenue r on r.from_at < m.ends and r.until_at >= m.ends join signed s on s.id = r.account_id
  group by 1, 2
), bought as (
  select s.cohort, date_trunc('month', g.starts_at at time zone 'UTC')::date as month,
    sum(g.cash_nanos - div(g.cash_nanos::numeric * g.refunded, g.granted)) as packs
  from credit_grant g join signed s on s.id = g.account_id
  where g.source = 'purchased' and g.root_id is null and g.currency = 'usd'
  group by 1, 2
)
select z.cohort, m.month, z.accounts, coalesce(u.active, 0), coalesce(k.paying, 0), coalesce(k.mrr, 0)::bigint, coalesce(b.packs, 0)::bigint
from sizes z join months m on m.month >= z.cohort
  left join used u on u.cohort = z.cohort and u.month = m.month
  left join kept k on k.cohort = z.cohort and k.month = m.month
  left join bought b on b.cohort = z.cohort and b.month = m.month
order by 1, 2
