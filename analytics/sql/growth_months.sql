-- Every change of what accounts of a product (:product; null is all) pay a month, before :until, by calendar month (UTC) and kind. Nano-USD.
select date_trunc('month', at at time zone 'UTC')::date, kind, count(*), sum(delta)::bigint
from revenue_step
where at < %(until)s and (%(product)s::bigint is null or product_id = %(product)s)
group by 1, 2
order by 1
