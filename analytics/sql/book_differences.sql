-- Where the books are not what a recount of every entry says, product by product. One statement, so one snapshot.
with counted as (
  select product_id, day, line, sum(cash_nanos)::bigint as cash, sum(fee_nanos)::bigint as fee from book_lines(true) group by 1, 2, 3
), live as (
  select product_id, day, line, sum(cash_nanos)::bigint as cash, sum(fee_nanos)::bigint as fee from live_book_product group by 1, 2, 3
), accounts as (
  select a.product_id, l.day, l.line, sum(l.cash_nanos)::bigint as cash, sum(l.fee_nanos)::bigint as fee
  from live_book_account l join accounts_account a on a.id = l.account_id group by 1, 2, 3
)
select product_id, day, line, array[coalesce(live.cash, 0), coalesce(live.fee, 0), coalesce(accounts.cash, 0), coalesce(accounts.fee, 0)],
  array[coalesce(counted.cash, 0), coalesce(counted.fee, 0)]
from counted full join live using (product_id, day, line) full join accounts using (product_id, day, line)
where (coalesce(live.cash, 0), coalesce(live.fee, 0)) <> (coalesce(counted.cash, 0), coalesce(counted.fee, 0))
  or (coalesce(accounts.cash, 0), coalesce(accounts.fee, 0)) <> (coalesce(counted.cash, 0), coalesce(counted.fee, 0))
order by 1, 2, 3
