-- The accounts of :product, each with about how many uses it had on the UTC days from :first up to :last.
select a.id, coalesce(r.records, 0)::bigint
from accounts_account a
left join (
  select account_id, sum(records) as records from live_rollup_account where day >= %(first)s and day <= %(last)s group by 1) r on r.account_id = a.id
where a.product_id = %(product)s
order by a.id
