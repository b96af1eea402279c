-- Who pays a product (:product; null is all) anything: accounts that have a subscription just before :until or bought a pack from :since on,
-- and those of all accounts whose very first payment lies from :since until before :until.
with paid as (
  select r.account_id, min(r.from_at) as first_at, bool_or(r.from_at < %(until)s and r.until_at >= %(until)s) as pays
  from subscription_revenue r
  where %(product)s::bigint is null or r.product_id = %(product)s
  group by 1
  union all
  select g.account_id, min(g.starts_at), bool_or(g.starts_at >= %(since)s and g.starts_at < %(until)s)
  from credit_grant g join accounts_account a on a.id = g.account_id
  where g.source = 'purchased' and g.root_id is null and g.cash_nanos > 0 and (%(product)s::bigint is null or a.product_id = %(product)s)
  group by 1
), payers as (
  select account_id, min(first_at) as first_at, bool_or(pays) as pays from paid group by 1
)
select count(*) filter (where pays), count(*) filter (where first_at >= %(since)s and first_at < %(until)s) from payers
