-- What a product (:product) came to on the UTC days from :since up to but without :until, nano-USD. :wanted names the sums that are asked
-- for; the others are not computed, since each CASE runs its query only where it is taken. Of machines: what is priced, and by nothing
-- that a language model is priced by (:of_models). Received: paid less refunded, of payments in US dollars made in these days.
with used as (
  select l.model_id, sum(l.cost_nanos) as cost_nanos, sum(l.value_nanos) as value_nanos, sum(l.cash_nanos) as cash_nanos
  from live_rollup_model l
  where l.product_id = %(product)s and l.day >= %(since)s and l.day < %(until)s
  group by 1
), kinds as (
  select u.*, coalesce((
    select not bool_or(p.component = any (%(of_models)s)) from price_book p where p.provider = m.provider and p.model = m.name), false) as machine
  from used u join metering_usagemodel m on m.id = u.model_id
)
select
  coalesce((select sum(cost_nanos) from kinds), 0)::bigint as cost,
  coalesce((select sum(cost_nanos) from kinds where not machine), 0)::bigint as ai_cost,
  coalesce((select sum(cost_nanos) from kinds where machine), 0)::bigint as machine_cost,
  coalesce((select sum(value_nanos) from kinds), 0)::bigint as charged,
  coalesce((select sum(cash_nanos) from kinds), 0)::bigint as cash_burnt,
  case when 'packs_sold' = any (%(wanted)s) then (
    select coalesce(sum(g.cash_nanos - div(g.cash_nanos::numeric * g.refunded, g.granted)), 0)
    from credit_grant g join accounts_account a on a.id = g.account_id
    where a.product_id = %(product)s and g.source = 'purchased' and g.root_id is null and g.currency = 'usd'
      and g.starts_at >= %(since)s::date::timestamp at time zone 'UTC' and g.starts_at < %(until)s::date::timestamp at time zone 'UTC')
  end::bigint as packs_sold,
  case when 'received' = any (%(wanted)s) then (
    select coalesce(sum(p.paid - p.refunded), 0) * 10000000
    from billing_stripepayment p join accounts_account a on a.id = p.account_id
    where a.product_id = %(product)s and p.currency = 'usd'
      and p.created_at >= %(since)s::date::timestamp at time zone 'UTC' and p.created_at < %(until)s::date::timestamp at time zone 'UTC')
  end::bigint as received
