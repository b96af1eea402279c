-- What a simulated year left in the ledger of :product, a line each, without anything that differs between two runs of the same events:
-- see analytics/simulation/digest.py. In order.
with theirs as (
  select id, external_id from accounts_account where product_id = %(product)s
), line as (
  select 1 as part, a.external_id, e.unit_id::bigint as one, e.seq::bigint as two, row('entry', a.external_id, u.code, e.seq, e.kind, e.amount,
    e.debt_delta, e.balance_after, e.debt_after, e.cash_nanos, e.fee_nanos, e.effective_at at time zone 'UTC',
    g.source, g.granted, g.starts_at at time zone 'UTC', g.expires_at at time zone 'UTC', g.cash_nanos, g.root_id is not null,
    coalesce(r.key_hash::text, p.key_hash::text), o.verb, o.actor)::text as line
  from ledger_entry e
    join theirs a on a.id = e.account_id
    join pricing_unit u on u.id = e.unit_id
    left join credit_grant g on g.account_id = e.account_id and g.id = e.grant_id
    left join usage_record r on r.account_id = e.account_id and r.id = e.usage_id
    left join open_authorization p on p.account_id = e.account_id and p.id = e.usage_id
    left join operation_key o on o.account_id = e.account_id and o.id = e.operation_id
  union all
  select 2, a.external_id, extract(epoch from u.event_at)::bigint, ('x' || left(replace(u.key_hash::text, '-', ''), 15))::bit(60)::bigint, row('usage',
    a.external_id, u.key_hash, m.provider, m.name, u.outcome, u.event_at at time zone 'UTC', u.quantities, coalesce(u.cost_nanos, r.cost_nanos),
    coalesce(u.price_nanos, r.price_nanos), coalesce(u.value_nanos, r.value_nanos), u.waived_nanos + coalesce(r.waived_nanos, 0), u.hold)::text
  from usage_record u
    join theirs a on a.id = u.account_id
    join metering_usagemodel m on m.id = u.model_id
    left join usage_rating r on r.account_id = u.account_id and r.usage_id = u.id
  union all
  select 3, a.external_id, extract(epoch from p.created_at)::bigint, p.paid, row('payment', a.external_id, p.created_at at time zone 'UTC', p.status,
    p.paid, p.refunded, p.disputed)::text
  from billing_stripepayment p join theirs a on a.id = p.account_id
  union all
  select 4, a.external_id, s.unit_id, 0, row('schedule', a.external_id, s.source, s.amount, s.anchor_at at time zone 'UTC', s.months, s.granted, s.skipped,
    s.ends_at at time zone 'UTC')::text
  from credit_schedule s join theirs a on a.id = s.account_id
  union all
  select 5, a.external_id, 0, 0, row('plan', a.external_id, p.slug, s.status, s.seats, s.anchor_at at time zone 'UTC',
    s.current_period_start at time zone 'UTC', s.current_period_end at time zone 'UTC')::text
  from billing_subscription s
    join theirs a on a.id = s.account_id
    join pricing_planversion v on v.id = s.plan_version_id
    join pricing_plan p on p.id = v.plan_id
  where s.status <> 'canceled'
)
select line from line order by part, external_id collate "C", one, two, line collate "C"
