-- How many packs a product (:product, null: all) sold from :since up to but without :until, given back or not.
select count(*)
from credit_grant g join accounts_account a on a.id = g.account_id
where g.source = 'purchased' and g.root_id is null and g.currency = 'usd' and (%(product)s::bigint is null or a.product_id = %(product)s)
  and g.starts_at >= %(since)s::date::timestamp at time zone 'UTC' and g.starts_at < %(until)s::date::timestamp at time zone 'UTC'
