-- How many accounts of a product (:product, null: all) used something on each of the UTC days from :since up to but without :until.
select l.day, count(distinct l.account_id)
from live_rollup_account l
where l.day >= %(since)s and l.day < %(until)s and l.records > 0
  and (%(product)s::bigint is null or l.account_id in (select id from accounts_account where product_id = %(product)s))
group by 1
order by 1
