-- By unit of a product (:product, null: all): what wallets hold, have held for open work and owe, how many have anything, and what was
-- charged on the UTC days from :since up to but without :until. Nanos of the unit, as numeric:
-- what a million wallets hold together may not fit into a bigint.
with wallets as (
  select w.unit_id, sum(w.balance) as balance, sum(w.held) as held, sum(w.debt) as debt, count(*) filter (where w.balance > 0) as holders
  from wallet w join accounts_account a on a.id = w.account_id
  where %(product)s::bigint is null or a.product_id = %(product)s
  group by 1
), burnt as (
  select p.unit_id, sum(l.price_nanos) as burnt
  from live_rollup_model l join pricing_product p on p.id = l.product_id
  where l.day >= %(since)s and l.day < %(until)s and (%(product)s::bigint is null or l.product_id = %(product)s)
  group by 1
)
select unit_id, coalesce(balance, 0), coalesce(held, 0), coalesce(debt, 0), coalesce(holders, 0), coalesce(burnt, 0)
from wallets full join burnt using (unit_id)
where balance <> 0 or debt <> 0 or burnt <> 0
order by unit_id
