-- What was earned per user, plan, pack or cohort (:by) on the UTC days from :since up to but without :until; rows as in margin_account.sql.
--   user     whom the client app named, within their account
--   plan     the account's plan of the day: the last one that began by its end and had not ended before it
--   pack     what the burnt credits were bought with, or came from
--   cohort   the month in which the account was opened
-- Users and packs are known of what was charged to credits; the rest, in one row without a key, is what the rollups have beyond it.
with term as (
  select s.account_id, (s.started_at at time zone 'UTC')::date as first_day, s.plan_version_id, (s.ended_at at time zone 'UTC')::date as ended,
    lead((s.started_at at time zone 'UTC')::date) over (partition by s.account_id order by s.started_at, s.id) as next_day
  from billing_subscription s where %(by)s = 'plan'
), used as (
  select l.account_id, t.plan_version_id, sum(l.records) as records, sum(l.tokens) as tokens, sum(l.cost_nanos) as cost_nanos,
    sum(l.value_nanos) as value_nanos, sum(l.cash_nanos) as cash_nanos, sum(l.fee_nanos) as fee_nanos
  from live_rollup_account l
    left join term t on t.account_id = l.account_id and l.day >= t.first_day and l.day < coalesce(t.next_day, 'infinity') and l.day <= coalesce(t.ended, 'infinity')
  where %(by)s in ('plan', 'cohort') and l.day >= %(since)s and l.day < %(until)s
  group by 1, 2
), named as (
  select account_id, user_ref, sum(records) as records, sum(cost_nanos) as cost_nanos, sum(value_nanos) as value_nanos,
    sum(cash_nanos) as cash_nanos, sum(fee_nanos) as fee_nanos
  from live_book_user
  where %(by)s = 'user' and day >= %(since)s and day < %(until)s
  group by 1, 2
), figures as (
  select case %(by)s when 'plan' then q.slug || '/' || p.slug else to_char(a.created_at at time zone 'UTC', 'YYYY-MM') end as key,
    case %(by)s when 'plan' then p.name else to_char(a.created_at at time zone 'UTC', 'YYYY-MM') end as label,
    l.records, l.tokens, l.cost_nanos, l.value_nanos, l.cash_nanos, l.fee_nanos
  from used l
    join accounts_account a on a.id = l.account_id
    left join pricing_planversion v on v.id = l.plan_version_id
    left join pricing_plan p on p.id = v.plan_id
    left join pricing_product q on q.id = p.product_id
  where %(product)s::bigint is null or a.product_id = %(product)s
  union all
  select trim(trailing '/' from source || '/' || label), coalesce(nullif(label, ''), source), records, 0, cost_nanos, value_nanos, cash_nanos, fee_nanos
  from live_book_origin
  where %(by)s = 'pack' and day >= %(since)s and day < %(until)s and (%(product)s::bigint is null or product_id = %(product)s)
  union all
  select a.public_id || '/' || l.user_ref, case l.user_ref when '' then 'No user named' else l.user_ref end || ' · ' || a.name, l.records, 0,
    l.cost_nanos, l.value_nanos, l.cash_nanos, l.fee_nanos
  from named l join accounts_account a on a.id = l.account_id
  where %(product)s::bigint is null or a.product_id = %(product)s
  union all
  select '', '', records, tokens, cost_nanos, value_nanos, cash_nanos, fee_nanos
  from live_rollup_model
  where %(by)s in ('pack', 'user') and day >= %(since)s and day < %(until)s and (%(product)s::bigint is null or product_id = %(product)s)
  union all
  select '', '', -records, 0, -cost_nanos, -value_nanos, -cash_nanos, -fee_nanos
  from live_book_origin
  where %(by)s in ('pack', 'user') and day >= %(since)s and day < %(until)s and (%(product)s::bigint is null or product_id = %(product)s)
), sums as (
  select grouping(key) as total, key, label, coalesce(sum(records), 0)::bigint as records, coalesce(sum(tokens), 0)::bigint as tokens,
    coalesce(sum(cost_nanos), 0)::bigint as cost_nanos, coalesce(sum(value_nanos), 0)::bigint as value_nanos,
    coalesce(sum(cash_nanos), 0)::bigint as cash_nanos, coalesce(sum(fee_nanos), 0)::bigint as fee_nanos
  from figures
  group by grouping sets ((key, label), ())
), shown as (
  select *, count(*) over () - 1 as groups from sums
  where total = 1 or (records, cost_nanos, value_nanos, cash_nanos, fee_nanos) is distinct from (0::bigint, 0::bigint, 0::bigint, 0::bigint, 0::bigint)
)
select key, label, records, case when total = 1 or %(by)s in ('plan', 'cohort') then tokens end, cost_nanos, value_nanos, cash_nanos, fee_nanos, groups
from shown
order by total desc, case when %(by)s = 'cohort' and not %(least)s then key end,
  case when %(least)s then (value_nanos - cost_nanos - case when %(fees)s then fee_nanos else 0 end)::numeric / nullif(value_nanos, 0) end nulls first,
  value_nanos desc, cost_nanos desc, key
limit %(limit)s + 1
