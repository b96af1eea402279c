-- Tokens by model of one product, from one UTC day to another, both counted; the most used models.
select u.provider || ':' || u.name, sum(r.tokens)
from live_rollup_model r
  join metering_usagemodel u on u.id = r.model_id
  join pricing_product p on p.id = r.product_id
where p.slug = %(product)s and r.day between %(since)s and %(until)s
group by u.id
having sum(r.tokens) > 0
order by sum(r.tokens) desc, u.id
limit %(most)s
