-- The changes of what accounts of a product (:product; null is all) pay a month, from :since until before :until, by kind. Nano-USD.
select kind, count(*), sum(delta)::bigint
from revenue_step
where at >= %(since)s and at < %(until)s and (%(product)s::bigint is null or product_id = %(product)s)
group by 1
