-- Usage of :product that waits for its price, by model: what was recorded, and what was captured and keeps its hold; at most :limit of
-- each. The order is that of the index of unpriced records: without it every record is read, since row security hides from the planner how
-- few they are.
select m.provider || ':' || m.name, count(*) from (
  (select u.model_id from usage_record u join accounts_account a on a.id = u.account_id
   where u.outcome = 'unpriced' and a.product_id = %(product)s
     and not exists (select from usage_rating r where r.account_id = u.account_id and r.usage_id = u.id)
   order by u.account_id, u.id
   limit %(limit)s)
  union all
  (select o.model_id from open_authorization o join accounts_account a on a.id = o.account_id
   where o.state = 'awaiting_price' and a.product_id = %(product)s
   limit %(limit)s)
) w join metering_usagemodel m on m.id = w.model_id
group by 1 order by 2 desc, 1
