-- Where the books are not what a recount of every entry says, product by product; accounts and users summed by product. One statement, so
-- one snapshot. Figures: cash, fee, list value, cost.
with counted as (
  select 'product' as book, product_id, day, line as what, cash_nanos, fee_nanos, 0::bigint as value_nanos, 0::bigint as cost_nanos from book_lines(true)
  union all
  select 'account', product_id, day, line, cash_nanos, fee_nanos, 0, 0 from book_lines(true)
  union all
  select 'origin', product_id, day, source || ' ' || label, cash_nanos, fee_nanos, value_nanos, cost_nanos from book_origins(true)
  union all
  select 'user', product_id, day, user_ref, cash_nanos, fee_nanos, value_nanos, cost_nanos from book_parts(true)
), live as (
  select 'product' as book, product_id, day, line as what, cash_nanos, fee_nanos, 0::bigint as value_nanos, 0::bigint as cost_nanos from live_book_product
  union all
  select 'account', a.product_id, l.day, l.line, l.cash_nanos, l.fee_nanos, 0, 0 from live_book_account l join accounts_account a on a.id = l.account_id
  union all
  select 'origin', product_id, day, source || ' ' || label, cash_nanos, fee_nanos, value_nanos, cost_nanos from live_book_origin
  union all
  select 'user', a.product_id, l.day, l.user_ref, l.cash_nanos, l.fee_nanos, l.value_nanos, l.cost_nanos
  from live_book_user l join accounts_account a on a.id = l.account_id
), expected as (
  select book, product_id, day, what, array[sum(cash_nanos), sum(fee_nanos), sum(value_nanos), sum(cost_nanos)]::bigint[] as figures
  from counted group by 1, 2, 3, 4
), found as (
  select book, product_id, day, what, array[sum(cash_nanos), sum(fee_nanos), sum(value_nanos), sum(cost_nanos)]::bigint[] as figures
  from live group by 1, 2, 3, 4
)
select product_id, day, book || ' ' || what, coalesce(f.figures, '{0,0,0,0}'), coalesce(e.figures, '{0,0,0,0}')
from expected e full join found f using (book, product_id, day, what)
where coalesce(f.figures, '{0,0,0,0}') <> coalesce(e.figures, '{0,0,0,0}')
order by 1, 2, 3
