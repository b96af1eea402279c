-- When money goes back, or is disputed, its credits go back: first what is frozen, then what is left and not covered by holds, of the grant
-- that was paid for and then of what rolled over from it; the rest is debt. The cash goes with the credits; the payment's fee was a cost
-- and stays one.

-- The grants of one payment: the one that was paid for, then its rollovers, oldest first.
create function ledger_family(p_account bigint, p_source text, p_source_key text) returns setof credit_grant language sql stable as $$
  select g.* from credit_grant r join credit_grant g on g.account_id = r.account_id and (g.id = r.id or g.root_id = r.id)
  where r.account_id = p_account and r.source = p_source and r.source_key = p_source_key and r.root_id is null
  order by g.id
$$;

-- How much of a grant no hold covers: holds cover the wallet's grants virtually, in burn order.
create function ledger_uncovered(w open_wallet, g credit_grant) returns bigint language sql stable as $$
  select greatest(0, g.remaining - greatest(0, w.held - coalesce(sum(c.remaining), 0)))::bigint from credit_grant c
  where c.account_id = w.account_id and c.unit_id = w.unit_id and not c.closed and c.remaining > 0
    and (c.priority, c.expires_at, c.id) < (g.priority, g.expires_at, g.id)
$$;

-- Takes back what p_refunded of the p_paid money units was paid for, both cumulative and in the payment's own currency: refunds that are
-- told twice, late or in another order come to the same. Nothing is ever given back.
create function ledger_refund(
  p_account bigint, p_key uuid, p_fingerprint uuid, p_actor text, p_reason text, p_source text, p_source_key text, p_refunded bigint, p_paid bigint)
returns operation_answer language plpgsql as $$
declare
  v_now timestamptz := ledger_lock(p_account);
  a operation_answer := ledger_replay(p_account, 'refund', p_key, p_fingerprint);
  r credit_grant;
  g credit_grant;
  w open_wallet;
  v_amount bigint;
  v_left bigint;
  v_part bigint;
  v_operation bigint := nextval(pg_get_serial_sequence('operation_key', 'id'));
begin
  if a.outcome is not null then
    return a;
  end if;
  select * into r from ledger_family(p_account, p_source, p_source_key) limit 1;
  if not found then
    return row('not_found', null, null, null, null, null, null)::operation_answer;
  end if;
  w := ledger_open(p_account, r.unit_id, v_now, null, v_operation);
  v_amount := greatest(0, share(r.granted, p_refunded, p_paid) - r.refunded);
  v_left := v_amount;
  update credit_grant set refunded = refunded + v_amount where account_id = p_account and id = r.id;
  for g in select * from ledger_family(p_account, p_source, p_source_key) where frozen > 0 loop
    v_part := least(v_left, g.frozen);
    exit when v_part = 0;
    w := ledger_move(w, g, 'unfreeze', v_part, 0, v_now);
    g.remaining := g.remaining + v_part;
    w := ledger_move(w, g, 'refund', -v_part, 0, v_now);
    v_left := v_left - v_part;
  end loop;
  for g in select * from ledger_family(p_account, p_source, p_source_key) where remaining > 0 loop
    exit when v_left = 0;
    v_part := least(v_left, ledger_uncovered(w, g));
    if v_part > 0 then
      w := ledger_move(w, g, 'refund', -v_part, 0, v_now);
      v_left := v_left - v_part;
    end if;
  end loop;
  if v_left > 0 then
    w := ledger_owe(w, 'debt', v_left);
  end if;
  w := ledger_close(w);
  insert into operation_key (account_id, verb, key_hash, fingerprint, id, actor, reason, created_at, grant_id, amount, balance_after, debt_after)
  overriding system value
  values (p_account, 'refund', p_key, p_fingerprint, v_operation, p_actor, p_reason, v_now, r.id, -v_amount, w.balance, w.debt);
  return row('done', v_operation, r.id, -v_amount, w.balance, w.debt, w.balance - w.held)::operation_answer;
end $$;

-- A dispute is open: freezes what is left of a payment's grants and not covered by holds.
create function ledger_freeze(
  p_account bigint, p_key uuid, p_fingerprint uuid, p_actor text, p_reason text, p_source text, p_source_key text)
returns operation_answer language plpgsql as $$
declare
  v_now timestamptz := ledger_lock(p_account);
  a operation_answer := ledger_replay(p_account, 'freeze', p_key, p_fingerprint);
  r credit_grant;
  g credit_grant;
  w open_wallet;
  v_amount bigint := 0;
  v_part bigint;
  v_operation bigint := nextval(pg_get_serial_sequence('operation_key', 'id'));
begin
  if a.outcome is not null then
    return a;
  end if;
  select * into r from ledger_family(p_account, p_source, p_source_key) limit 1;
  if not found then
    return row('not_found', null, null, null, null, null, null)::operation_answer;
  end if;
  w := ledger_open(p_account, r.unit_id, v_now, null, v_operation);
  for g in select * from ledger_family(p_account, p_source, p_source_key) where remaining > 0 loop
    v_part := ledger_uncovered(w, g);
    if v_part > 0 then
      w := ledger_move(w, g, 'freeze', -v_part, 0, v_now);
      v_amount := v_amount + v_part;
    end if;
  end loop;
  w := ledger_close(w);
  insert into operation_key (account_id, verb, key_hash, fingerprint, id, actor, reason, created_at, grant_id, amount, balance_after, debt_after)
  overriding system value
  values (p_account, 'freeze', p_key, p_fingerprint, v_operation, p_actor, p_reason, v_now, r.id, -v_amount, w.balance, w.debt);
  return row('done', v_operation, r.id, -v_amount, w.balance, w.debt, w.balance - w.held)::operation_answer;
end $$;

-- A dispute was won: exactly what is still frozen comes back, and expires (or rolls over) at once where it is overdue.
create function ledger_unfreeze(
  p_account bigint, p_key uuid, p_fingerprint uuid, p_actor text, p_reason text, p_source text, p_source_key text)
returns operation_answer language plpgsql as $$
declare
  v_now timestamptz := ledger_lock(p_account);
  a operation_answer := ledger_replay(p_account, 'unfreeze', p_key, p_fingerprint);
  r credit_grant;
  g credit_grant;
  w open_wallet;
  v_amount bigint := 0;
  v_operation bigint := nextval(pg_get_serial_sequence('operation_key', 'id'));
begin
  if a.outcome is not null then
    return a;
  end if;
  select * into r from ledger_family(p_account, p_source, p_source_key) limit 1;
  if not found then
    return row('not_found', null, null, null, null, null, null)::operation_answer;
  end if;
  w := ledger_open(p_account, r.unit_id, v_now, null, v_operation);
  for g in select * from ledger_family(p_account, p_source, p_source_key) where frozen > 0 loop
    w := ledger_move(w, g, 'unfreeze', g.frozen, 0, v_now);
    v_amount := v_amount + g.frozen;
  end loop;
  w := ledger_close(w);
  insert into operation_key (account_id, verb, key_hash, fingerprint, id, actor, reason, created_at, grant_id, amount, balance_after, debt_after)
  overriding system value
  values (p_account, 'unfreeze', p_key, p_fingerprint, v_operation, p_actor, p_reason, v_now, r.id, v_amount, w.balance, w.debt);
  return row('done', v_operation, r.id, v_amount, w.balance, w.debt, w.balance - w.held)::operation_answer;
end $$;

revoke all on function ledger_family, ledger_uncovered, ledger_refund, ledger_freeze, ledger_unfreeze from public;
alter function ledger_refund security definer set search_path = public, pg_temp;
alter function ledger_freeze security definer set search_path = public, pg_temp;
alter function ledger_unfreeze security definer set search_path = public, pg_temp;
