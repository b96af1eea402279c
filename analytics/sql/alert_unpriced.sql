-- Usage of :product that waits for its price, by model: what was recorded, and what was captured and keeps its hold.
select m.provider || ':' || m.name, sum(w.waiting)::bigint from (
  select u.model_id, count(*) as waiting from usage_record u join accounts_account a on a.id = u.account_id
  where u.outcome = 'unpriced' and a.product_id = %(product)s
    and not exists (select from usage_rating r where r.account_id = u.account_id and r.usage_id = u.id)
  group by 1
  union all
  select o.model_id, count(*) from open_authorization o join accounts_account a on a.id = o.account_id
  where o.state = 'awaiting_price' and a.product_id = %(product)s
  group by 1
) w join metering_usagemodel m on m.id = w.model_id
group by 1 order by 2 desc, 1
