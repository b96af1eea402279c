-- What limits in shadow mode would have refused since :since, per account and limit, most value first; the first row is the total of all.
-- :product null is all products. A call that passed two limits is in both rows; the total takes for each account the larger value.
with passed as (
  select r.account_id, r.meter, min(r.layer) as layer, sum(r.count)::bigint as calls, least(sum(r.value_nanos), 9223372036854775807)::bigint as value_nanos,
    max(r.most_used) as most_used, max(r.allowed) as allowed, count(*) as windows, min(r.first_at) as first_at, max(r.last_at) as last_at,
    bool_or(r.window_end > %(now)s) as now
  from metering_shadowrefusal r join accounts_account a on a.id = r.account_id
  where r.last_at >= %(since)s and (%(product)s::bigint is null or a.product_id = %(product)s)
  group by r.account_id, r.meter
), total as (
  select count(*) as accounts, coalesce(sum(calls), 0)::bigint as calls, least(coalesce(sum(value_nanos), 0), 9223372036854775807)::bigint as value_nanos
  from (select max(calls) as calls, max(value_nanos) as value_nanos from passed group by account_id) each
)
select '', '', '', '', '', calls, value_nanos, null, null, accounts, null, null, null from total
union all
(select a.public_id, a.name, p.slug, x.meter, x.layer, x.calls, x.value_nanos, x.most_used, x.allowed, x.windows, x.first_at, x.last_at, x.now
 from passed x join accounts_account a on a.id = x.account_id join pricing_product p on p.id = a.product_id
 order by x.value_nanos desc, x.calls desc, x.account_id, x.meter
 limit %(limit)s)
