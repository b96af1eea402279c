-- How many accounts of a product (:product, null: all) used something on each of the UTC days from :since up to but without :until. Of a day
-- and an account there is one folded row, so that those are counted without sorting them; what is not folded counts where no folded row does.
with days as (
  select r.day, count(*) as accounts
  from rollup_account r
  where r.day >= %(since)s and r.day < %(until)s and r.records > 0
    and (%(product)s::bigint is null or r.account_id in (select id from accounts_account where product_id = %(product)s))
  group by 1
  union all
  select d.day, count(distinct d.account_id)
  from rollup_delta d
  where d.day >= %(since)s and d.day < %(until)s and d.records > 0
    and (%(product)s::bigint is null or d.account_id in (select id from accounts_account where product_id = %(product)s))
    and not exists (select from rollup_account r where r.account_id = d.account_id and r.day = d.day and r.records > 0)
  group by 1
)
select day, sum(accounts)::bigint from days group by 1 order by 1
