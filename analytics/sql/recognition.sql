-- Where the cash of some days went, by day, product or account (:by): the books of the credit, and of plans' time what was earned, from the
-- instant :since up to but without :until. The first row is the total; the rest are days in order, others by what was earned, :limit at most.
-- :product and :account null are all. A last day that is not over (:partial) is counted up to :until.
with book as (
  select product_id, null::bigint as account_id, day, line, cash_nanos, fee_nanos from live_book_product
  where %(by)s <> 'account' and %(account)s::bigint is null
  union all
  select a.product_id, b.account_id, b.day, b.line, b.cash_nanos, b.fee_nanos from live_book_account b join accounts_account a on a.id = b.account_id
  where %(by)s = 'account' or %(account)s::bigint is not null
  union all
  select product_id, account_id, day, line, -cash_nanos, -fee_nanos from book_lines(false, %(until)s) where %(partial)s
), span as (
  select day::date as day, day at time zone 'UTC' as since, least(day at time zone 'UTC' + interval '1 day', %(until)s) as until
  from generate_series((%(since)s at time zone 'UTC')::date::timestamp, %(last_day)s::timestamp, interval '1 day') day
  where %(by)s = 'day'
  union all
  select null, %(since)s, %(until)s where %(by)s <> 'day'
), time as (
  select a.product_id, p.account_id, s.day, p.cash_nanos, p.fee_nanos, p.back_nanos, p.booked_at >= s.since and p.booked_at < s.until as booked,
    earned_by(p.cash_nanos - p.back_nanos, p.booked_at, p.starts_at, p.ends_at, s.until)
      - earned_by(p.cash_nanos - p.back_nanos, p.booked_at, p.starts_at, p.ends_at, s.since) as earned,
    earned_by(p.fee_nanos, p.booked_at, p.starts_at, p.ends_at, s.until)
      - earned_by(p.fee_nanos, p.booked_at, p.starts_at, p.ends_at, s.since) as fee
  from span s join billing_paidtime p on p.booked_at < s.until and greatest(p.ends_at, p.booked_at) >= s.since
    join accounts_account a on a.id = p.account_id
), line as (
  select product_id, account_id, day, line, cash_nanos, fee_nanos from book
  where day >= (%(since)s at time zone 'UTC')::date and day <= %(last_day)s
  union all
  select product_id, account_id, day, x.line, x.cash, x.fee
  from time cross join lateral (values
    ('time_received', case when booked then cash_nanos else 0 end, case when booked then fee_nanos else 0 end),
    ('time_returned', case when booked then back_nanos else 0 end, 0),
    ('time_earned', earned, fee)) as x (line, cash, fee)
), sums as (
  select grouping(key) as total, key,
    array[
      isum(cash_nanos) filter (where line = 'received'), isum(fee_nanos) filter (where line = 'received'),
      isum(cash_nanos) filter (where line in ('usage', 'reversal')), isum(cash_nanos) filter (where line = 'debt_repaid'),
      isum(cash_nanos) filter (where line = 'expiry'), isum(cash_nanos) filter (where line = 'adjustment'),
      isum(cash_nanos) filter (where line = 'refund'), isum(cash_nanos) filter (where line = 'returned'),
      isum(cash_nanos) filter (where line in ('freeze', 'unfreeze')),
      isum(fee_nanos) filter (where line in ('usage', 'reversal', 'debt_repaid', 'expiry', 'adjustment', 'refund')),
      isum(cash_nanos) filter (where line = 'time_received'), isum(fee_nanos) filter (where line = 'time_received'),
      isum(cash_nanos) filter (where line = 'time_returned'), isum(cash_nanos) filter (where line = 'time_earned'),
      isum(fee_nanos) filter (where line = 'time_earned'),
      isum(cash_nanos) filter (where line = 'promotion'), isum(fee_nanos) filter (where line = 'promotion')] as figures,
    count(*) over () - 1 as groups
  from (
    select *, case %(by)s when 'day' then (day - date '1970-01-01')::bigint when 'account' then account_id else product_id end as key from line
    where (%(product)s::bigint is null or product_id = %(product)s) and (%(account)s::bigint is null or account_id = %(account)s)) keyed
  group by grouping sets ((key), ())
)
select
  case %(by)s when 'day' then (date '1970-01-01' + s.key::int)::text when 'account' then a.public_id else p.slug end,
  case %(by)s when 'day' then (date '1970-01-01' + s.key::int)::text when 'account' then a.name else p.name end,
  array(select coalesce(figure, 0) from unnest(s.figures) with ordinality as f (figure, n) order by n), s.groups
from sums s
  left join pricing_product p on %(by)s = 'product' and p.id = s.key
  left join accounts_account a on %(by)s = 'account' and a.id = s.key
order by s.total desc, case when %(by)s = 'day' then s.key end,
  coalesce(s.figures[3], 0) + coalesce(s.figures[4], 0) + coalesce(s.figures[5], 0) + coalesce(s.figures[14], 0) desc, s.key
limit %(limit)s + 1
