-- What packs of a product (:product; null is all) sold for on the UTC days from :since up to but without :until, less what was given back of
-- them, whenever that was, and to how many accounts. Nano-USD, as numeric: together they may not fit into a bigint.
select coalesce(sum(g.cash_nanos - div(g.cash_nanos::numeric * g.refunded, g.granted)), 0), count(distinct g.account_id)
from credit_grant g join accounts_account a on a.id = g.account_id
where g.source = 'purchased' and g.root_id is null and g.currency = 'usd' and (%(product)s::bigint is null or a.product_id = %(product)s)
  and g.starts_at >= %(since)s::date::timestamp at time zone 'UTC' and g.starts_at < %(until)s::date::timestamp at time zone 'UTC'
