-- Every equation of the ledger, as queries that return what violates it; no row means clean. Read by billing/audit.py, one name a block.

-- name: balance is the sum of the entries
select w.account_id, format('wallet %s: balance %s, Σ entries %s', w.unit_id, w.balance, coalesce(e.total, 0)) as finding
from wallet w
left join (select account_id, unit_id, sum(amount) as total from ledger_entry group by 1, 2) e using (account_id, unit_id)
where w.balance <> coalesce(e.total, 0);

-- name: balance is what remains in the grants
select w.account_id, format('wallet %s: balance %s, Σ remaining %s', w.unit_id, w.balance, coalesce(g.total, 0))
from wallet w
left join (select account_id, unit_id, sum(remaining) as total from credit_grant group by 1, 2) g using (account_id, unit_id)
where w.balance <> coalesce(g.total, 0);

-- name: debt is the sum of the entries
select w.account_id, format('wallet %s: debt %s, Σ entries %s', w.unit_id, w.debt, coalesce(e.total, 0))
from wallet w
left join (select account_id, unit_id, sum(debt_delta) as total from ledger_entry group by 1, 2) e using (account_id, unit_id)
where w.debt <> coalesce(e.total, 0);

-- name: held is the sum of the open holds
select w.account_id, format('wallet %s: held %s, Σ open holds %s', w.unit_id, w.held, coalesce(a.total, 0))
from wallet w
left join (select account_id, unit_id, sum(held) as total from open_authorization where unit_id is not null group by 1, 2) a using (account_id, unit_id)
where w.held <> coalesce(a.total, 0);

-- name: open work is counted
select s.account_id, format('open count %s, open authorizations %s', s.open_count, coalesce(a.total, 0))
from account_state s
left join (select account_id, count(*) as total from open_authorization where state = 'open' group by 1) a using (account_id)
where s.open_count <> case when s.counted then coalesce(a.total, 0) else 0 end;

-- name: the cost of open work is counted
select s.account_id, format('open cost %s, Σ estimates of open authorizations %s', s.open_cost_nanos, coalesce(a.total, 0))
from account_state s
left join (select account_id, sum(cost_nanos) as total from open_authorization where state <> 'timed_out' group by 1) a using (account_id)
where s.open_cost_nanos <> case when s.counted then coalesce(a.total, 0) else 0 end;

-- name: stops and counters are known to the account's row
select s.account_id, format('stopped %s, counted %s, capped %s', s.stopped, s.counted, s.capped)
from account_state s
where (not s.stopped and exists (select from usage_throttle t where t.account_id = s.account_id and t.lifted_at is null))
   or (not s.counted and exists (select from usage_counter c where c.account_id = s.account_id))
   or (s.capped and not s.counted)
   or (not s.capped and exists (select from usage_spend_window w where w.account_id = s.account_id));

-- name: every counter is the recount of its records
select c.account_id, format('counter %s from %s: %s, recounted %s', c.meter, c.window_start, c.used, r.used)
from usage_counter c, lateral (select usage_recount(c.account_id, c.meter, c.window_start, c.window_end) as used) r
where c.used <> r.used;

-- name: what is capped is the recount of its records
select w.account_id, format('spend of %s %s (%s from %s): %s, recounted %s', w.kind, x.subject, w.span, w.window_start, x.spent, x.recounted)
from usage_spend_window w, lateral (
  select b.subject, sum(b.spent) as spent, sum(b.recounted) as recounted
  from (
    select s.subject, s.spent, 0 as recounted from usage_spend s
    where s.account_id = w.account_id and s.kind = w.kind and s.span = w.span and s.window_start = w.window_start
    union all
    select r.subject, 0, r.spent from usage_spend_recount(w.account_id, w.kind, null, w.window_start, w.window_end) r) b
  group by 1) x
where x.spent <> x.recounted;

-- name: a grant's movements leave what remains
select g.account_id, format('grant %s: remaining %s, Σ entries %s', g.id, g.remaining, coalesce(e.total, 0))
from credit_grant g
left join (select account_id, grant_id, sum(amount) as total from ledger_entry group by 1, 2) e on e.account_id = g.account_id and e.grant_id = g.id
where g.remaining <> coalesce(e.total, 0);

-- name: a grant's cash moved with its credits
select g.account_id, format('grant %s: cash %s of %s moved, expected %s', g.id, e.cash, g.cash_nanos, floor(g.cash_nanos::numeric * (g.granted - g.remaining) / g.granted))
from credit_grant g
join (select account_id, grant_id, sum(cash_nanos) as cash from ledger_entry group by 1, 2) e on e.account_id = g.account_id and e.grant_id = g.id
where e.cash <> floor(g.cash_nanos::numeric * (g.granted - g.remaining) / g.granted);

-- name: a grant's fee moved with its credits
select g.account_id, format('grant %s: fee %s of %s moved, expected %s', g.id, e.fee, g.fee_nanos, floor(g.fee_nanos::numeric * (g.granted - g.remaining) / g.granted))
from credit_grant g
join (select account_id, grant_id, sum(fee_nanos) as fee from ledger_entry group by 1, 2) e on e.account_id = g.account_id and e.grant_id = g.id
where e.fee <> floor(g.fee_nanos::numeric * (g.granted - g.remaining) / g.granted);

-- name: entries are numbered without gaps and their running balance holds
select account_id, format('wallet %s entry %s: balance %s after %s, amount %s', unit_id, seq, balance_after, previous_balance, amount)
from (
  select e.*, lag(seq, 1, 0::bigint) over w as previous_seq, lag(balance_after, 1, 0::bigint) over w as previous_balance,
    lag(debt_after, 1, 0::bigint) over w as previous_debt
  from ledger_entry e window w as (partition by account_id, unit_id order by seq)) x
where seq <> previous_seq + 1 or balance_after <> previous_balance + amount or debt_after <> previous_debt + debt_delta;

-- name: the last entry is the wallet
select w.account_id, format('wallet %s: number %s, entries %s', w.unit_id, w.seq, coalesce(e.last, 0))
from wallet w
left join (select account_id, unit_id, max(seq) as last from ledger_entry group by 1, 2) e using (account_id, unit_id)
where w.seq <> coalesce(e.last, 0);

-- name: every priced record has its entries
select u.account_id, format('record %s: price %s, entries %s', u.id, coalesce(u.price_nanos, r.price_nanos), coalesce(e.total, 0))
from usage_record u
left join usage_rating r on r.account_id = u.account_id and r.usage_id = u.id
left join (
  select account_id, usage_id, sum(case kind when 'usage' then -amount when 'debt' then debt_delta else 0 end) as total
  from ledger_entry where usage_id is not null group by 1, 2) e on e.account_id = u.account_id and e.usage_id = u.id
where coalesce(r.unit_id, u.unit_id) is not null and coalesce(u.price_nanos, r.price_nanos, 0) <> coalesce(e.total, 0);

-- name: only what had no price is rated later
select u.account_id, format('record %s: %s, and rated at %s', u.id, u.outcome, r.rated_at)
from usage_rating r join usage_record u on u.account_id = r.account_id and u.id = r.usage_id
where u.outcome <> 'unpriced';

-- name: every usage entry has its record
select e.account_id, format('entry %s of record %s', e.seq, e.usage_id)
from ledger_entry e
left join usage_record u on u.account_id = e.account_id and u.id = e.usage_id
left join open_authorization a on a.account_id = e.account_id and a.id = e.usage_id
where e.usage_id is not null and u.id is null and (a.id is null or e.kind in ('usage', 'debt'));

-- name: a charge is what its seal says
-- What was recorded in the last two days, and each night a thirtieth of the accounts whole: every charge is looked at each month.
select u.account_id, format('record %s: it, or an entry of it, is not what was written', u.id)
from usage_record u
where (u.recorded_at > app_now() - interval '2 days' or u.account_id % 30 = floor(extract(epoch from app_now()) / 86400)::bigint % 30)
  and u.seal <> usage_seal(usage_sealed_record(u))
union all
select u.account_id, format('rating of record %s: it, or an entry of it, is not what was written', u.id)
from usage_rating r join usage_record u on u.account_id = r.account_id and u.id = r.usage_id
where r.seal <> usage_seal(usage_sealed_rating(u, r));

-- name: a reversed record is undone whole
select o.account_id, format('reversal %s: undone %s of %s', o.id, coalesce(e.total, 0), o.amount)
from operation_key o
left join (
  select account_id, operation_id, sum(amount - debt_delta) as total from ledger_entry where kind = 'reversal' group by 1, 2) e
  on e.account_id = o.account_id and e.operation_id = o.id
where o.verb = 'reverse' and o.amount <> coalesce(e.total, 0);

-- name: nothing stays past its expiry unless holds cover it
select g.account_id, format('grant %s expired at %s with %s left and nothing held', g.id, g.expires_at, g.remaining)
from credit_grant g join wallet w using (account_id, unit_id)
where g.remaining > 0 and g.expires_at < app_now() - interval '1 hour' and w.held = 0 and exists (
  select from ledger_entry e where e.account_id = g.account_id and e.unit_id = g.unit_id and e.recorded_at > g.expires_at and e.seq = w.seq);

-- name: no work is in two places
select a.account_id, format('authorization %s is open and finished', a.id)
from open_authorization a
where exists (select from usage_record u where u.account_id = a.account_id and u.id = a.id)
   or exists (select from usage_record u where u.account_id = a.account_id and u.key_hash = a.key_hash);

-- name: what is frozen or clawed has its entries
select g.account_id, format('grant %s: frozen %s, clawed %s, entries %s and %s', g.id, g.frozen, g.clawed, coalesce(e.frozen, 0), coalesce(e.clawed, 0))
from credit_grant g
left join (
  select account_id, grant_id, -sum(amount) filter (where kind in ('freeze', 'unfreeze')) as frozen, -sum(amount) filter (where kind = 'refund') as clawed
  from ledger_entry where kind in ('freeze', 'unfreeze', 'refund') group by 1, 2) e on e.account_id = g.account_id and e.grant_id = g.id
where g.frozen <> coalesce(e.frozen, 0) or g.clawed <> coalesce(e.clawed, 0);

-- name: a refund is what was clawed and what is owed for it
select r.account_id, format('grant %s: refunded %s, operations %s, clawed and owed %s', r.id, r.refunded, coalesce(o.amount, 0), coalesce(f.clawed, 0) + coalesce(o.owed, 0))
from credit_grant r
left join lateral (
  select sum(g.clawed) as clawed from credit_grant g where g.account_id = r.account_id and coalesce(g.root_id, g.id) = r.id) f on true
left join lateral (
  select -sum(o.amount) as amount, sum((
    select sum(e.debt_delta) from ledger_entry e where e.account_id = o.account_id and e.operation_id = o.id and e.kind = 'debt')) as owed
  from operation_key o where o.account_id = r.account_id and o.grant_id = r.id and o.verb = 'refund') o on true
where r.root_id is null and (r.refunded > 0 or f.clawed > 0 or o.amount > 0)
  and (r.refunded <> coalesce(o.amount, 0) or r.refunded <> coalesce(f.clawed, 0) + coalesce(o.owed, 0));

-- name: a rollover is what left its grant, with its cash and fee
select g.account_id, format('rollover %s of %s: %s granted, %s left the grant before it', g.id, g.root_id, g.granted, -e.amount)
from credit_grant g
left join ledger_entry i on i.account_id = g.account_id and i.grant_id = g.id and i.kind = 'rollover' and i.amount > 0
left join ledger_entry e on e.account_id = i.account_id and e.unit_id = i.unit_id and e.seq = i.seq - 1
left join credit_grant p on p.account_id = e.account_id and p.id = e.grant_id
where g.root_id is not null and (e.kind, -e.amount, e.cash_nanos, e.fee_nanos, coalesce(p.root_id, p.id)) is distinct from
  ('rollover'::entry_kind, g.granted, g.cash_nanos, g.fee_nanos, g.root_id);

-- name: every period that a schedule began was granted once
select s.account_id, format('schedule %s:%s: %s periods begun, %s grants', s.source, s.source_key, s.granted, g.total)
from credit_schedule s, lateral (
  select count(*) as total from credit_grant g
  where g.account_id = s.account_id and g.source = s.source and starts_with(g.source_key, s.source_key || ':') and g.granted = s.amount) g
where g.total <> s.granted;

-- name: nothing is due before the wallet says
select w.account_id, format('wallet %s: due at %s, but something is at %s', w.unit_id, w.due_at, d.at)
from wallet w, lateral (
  select nullif(least(
    (select min(g.expires_at) from credit_grant g where g.account_id = w.account_id and g.unit_id = w.unit_id and g.remaining > 0),
    (select next_grant(s) from credit_schedule s where s.account_id = w.account_id and s.unit_id = w.unit_id)), 'infinity') as at) d
where d.at < coalesce(w.due_at, 'infinity');
