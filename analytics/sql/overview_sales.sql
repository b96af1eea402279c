-- What was sold in credit from :since up to but without :until, of a product (:product, null: all), in US dollars as nano-USD: packs without
-- what was given back, how many were bought, and what the payment provider kept of all credit that was paid for, plans' too.
select coalesce(sum(g.cash_nanos - div(g.cash_nanos::numeric * g.refunded, g.granted)) filter (where g.source = 'purchased'), 0)::bigint,
  count(*) filter (where g.source = 'purchased'), coalesce(sum(g.fee_nanos), 0)::bigint
from credit_grant g join accounts_account a on a.id = g.account_id
where g.root_id is null and g.currency = 'usd' and g.cash_nanos > 0 and (%(product)s::bigint is null or a.product_id = %(product)s)
  and g.starts_at >= %(since)s::date::timestamp at time zone 'UTC' and g.starts_at < %(until)s::date::timestamp at time zone 'UTC'
