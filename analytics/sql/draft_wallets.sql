-- The debt of :accounts in :unit at :since, and what the plan lets roll over in all (null: what each grant says).
select w.account_id, (w.debt - coalesce(m.owed, 0))::bigint, w.rollover_cap
from wallet w
left join (
  select account_id, sum(debt_delta) as owed from ledger_entry
  where account_id = any (%(accounts)s) and unit_id = %(unit)s and recorded_at >= %(since)s and debt_delta <> 0
  group by 1) m on m.account_id = w.account_id
where w.account_id = any (%(accounts)s) and w.unit_id = %(unit)s
