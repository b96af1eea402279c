-- Wallets that moved from :since on and are not what their grants and their last entry say, by their account's public id. A small audit of
-- what is busy; the whole one reads everything.
with moved as materialized (
  select distinct e.account_id, e.unit_id from ledger_entry e where e.recorded_at >= %(since)s
)
select a.public_id from moved
  join wallet w using (account_id, unit_id)
  join accounts_account a on a.id = w.account_id
  cross join lateral (
    select coalesce(sum(g.remaining), 0) as remaining from credit_grant g
    where g.account_id = w.account_id and g.unit_id = w.unit_id and not g.closed) g
  left join lateral (
    select e.balance_after, e.debt_after from ledger_entry e where e.account_id = w.account_id and e.unit_id = w.unit_id order by e.seq desc limit 1) e on true
where w.balance <> g.remaining or w.balance is distinct from e.balance_after or w.debt is distinct from e.debt_after
  or w.held not between 0 and w.balance or w.debt < 0 or (w.debt > 0 and w.balance <> w.held)
order by a.id
