-- What machines cost us on the UTC days from :since up to but without :until: usage of what a price row prices by one of :components (time,
-- storage, traffic), of a product (:product, null: all), and how many records of it there are. Nano-USD.
select coalesce(sum(l.cost_nanos), 0)::bigint, coalesce(sum(l.records), 0)::bigint
from live_rollup_model l join metering_usagemodel m on m.id = l.model_id
where l.day >= %(since)s and l.day < %(until)s and (%(product)s::bigint is null or l.product_id = %(product)s)
  and exists (
    select from price_book r where r.provider = m.provider and r.model = m.name and r.component = any (%(components)s))
