-- What happens to a wallet by itself: holds that nobody resolved end, grants expire or roll over, schedules grant. The verbs apply it, under
-- the lock and before anything else; wallet.due_at says when there is something, so that the hot path looks no further while there is not.
-- The ends of holds are not in it: they move what is free and nothing else, so a verb looks for them where what is free decides.
--
-- Everything happens at its due time, oldest first: holds end → expire → roll over → grant. A verb that comes late finds what it would have found.
--
-- A schedule that is about to grant what it should not (a third time for one day, or a period again) is stopped and grants nothing more
-- until staff have looked; everything else of the account goes on. docs/decisions/0050 says why so.

-- Applies what is due by w.now. What holds cover is kept, past its expiry too; whatever frees it comes back here.
create function ledger_due(w open_wallet) returns open_wallet language plpgsql as $$
declare
  s credit_schedule;
  v_grant_at timestamptz;
  v_end_at timestamptz := usage_first_end(w.account_id, w.unit_id);
  v_at timestamptz := '-infinity';
  v_stopped text;
begin
  select * into s from credit_schedule where account_id = w.account_id and unit_id = w.unit_id;
  v_grant_at := next_grant(s);
  loop
    select least(min(c.expires_at), v_grant_at, v_end_at) into v_at from credit_grant c
    where c.account_id = w.account_id and c.unit_id = w.unit_id and not c.closed and c.remaining > 0 and c.expires_at > v_at;
    exit when v_at is null or v_at > w.now;
    if v_end_at = v_at then
      w := ledger_unhold(w, v_at);
      v_end_at := usage_first_end(w.account_id, w.unit_id);
    end if;
    w := ledger_expire(w, v_at);
    if v_grant_at = v_at then
      v_stopped := ledger_runaway(s, v_at);
      if v_stopped is null then
        w := ledger_expire(ledger_grant_due(w, s, v_at), v_at);
        s.granted := s.granted + 1;
      else
        update credit_schedule set stopped_at = w.now, stopped_because = v_stopped
        where account_id = w.account_id and unit_id = w.unit_id returning * into s;
      end if;
      v_grant_at := next_grant(s);
    end if;
  end loop;
  select ledger_sooner(min(c.expires_at), v_grant_at) into w.due_at from credit_grant c
  where c.account_id = w.account_id and c.unit_id = w.unit_id and not c.closed and c.remaining > 0;
  return w;
end $$;

-- When the first hold of a wallet that is still open ends, or ended; null: there is none.
create function usage_first_end(p_account bigint, p_unit smallint) returns timestamptz language plpgsql stable as $$
begin
  return (
    select min(coalesce(extended_to, expires_at)) from open_authorization
    where account_id = p_account and unit_id = p_unit and state = 'open' and held > 0);
end $$;

-- Gives back the holds of a wallet that end at p_at; what they free repays debt. Their captures may still come.
create function ledger_unhold(w open_wallet, p_at timestamptz) returns open_wallet language plpgsql as $$
declare
  a open_authorization;
  v_usage uuid := w.usage_id;
  v_operation bigint := w.operation_id;
begin
  w.operation_id := null;
  for a in
    select * from open_authorization
    where account_id = w.account_id and unit_id = w.unit_id and state = 'open' and held > 0 and coalesce(extended_to, expires_at) = p_at
    order by id
  loop
    w.held := w.held - a.held;
    w.usage_id := a.id;   -- of several at once the last: what they free together is one repayment
    perform usage_time_out(a);
  end loop;
  w := ledger_repay(w, p_at);
  w.usage_id := v_usage;
  w.operation_id := v_operation;
  return w;
end $$;

-- Ends what is over by p_at and not covered by holds: first what expires, then what rolls over. Holds cover the grants virtually, in burn
-- order, so they cover the front of the queue; what rolls over may move there, and free what stood behind it.
create function ledger_expire(w open_wallet, p_at timestamptz) returns open_wallet language plpgsql as $$
declare
  g credit_grant;
  v_before bigint;
  v_free bigint;
  v_seq bigint;
  v_rolls boolean;
begin
  loop
    v_seq := w.seq;
    foreach v_rolls in array array[false, true] loop
      v_before := 0;
      for g in
        select * from credit_grant c
        where c.account_id = w.account_id and c.unit_id = w.unit_id and not c.closed and c.remaining > 0
        order by c.priority, c.expires_at, c.id
      loop
        v_free := g.remaining - greatest(0, least(g.remaining, w.held - v_before));
        v_before := v_before + g.remaining;
        if g.expires_at <= p_at and v_free > 0 and (g.rollover_expires_at is not null) = v_rolls then
          w := case when v_rolls then ledger_roll(w, g, v_free) else ledger_move(w, g, 'expiry', -v_free, 0, g.expires_at) end;
        end if;
      end loop;
    end loop;
    exit when w.seq = v_seq;
  end loop;
  return w;
end $$;

-- Rolls p_amount of a grant over into a grant of its own, with its cash and fee, as far as the cap leaves room; the rest expires.
create function ledger_roll(w open_wallet, g credit_grant, p_amount bigint) returns open_wallet language plpgsql as $$
declare
  c credit_grant;
  v_cash bigint := w.cash_nanos;
  v_fee bigint := w.fee_nanos;
  v_cap bigint := coalesce((select rollover_cap from wallet where account_id = w.account_id and unit_id = w.unit_id), g.rollover_cap);
  v_room numeric := (
    select coalesce(v_cap - sum(r.remaining::numeric + r.frozen), v_cap, p_amount) from credit_grant r
    where r.account_id = w.account_id and r.unit_id = w.unit_id and r.source = 'rollover' and not r.closed);
  v_rolled bigint := least(p_amount, greatest(0, v_room));
begin
  if v_rolled > 0 then
    w := ledger_move(w, g, 'rollover', -v_rolled, 0, g.expires_at);
    insert into credit_grant (
      account_id, unit_id, source, source_key, root_id, granted, remaining, priority, starts_at, expires_at, cash_nanos, fee_nanos, currency)
    values (
      w.account_id, w.unit_id, 'rollover', format('%s:%s', g.id, w.seq), coalesce(g.root_id, g.id), v_rolled, 0, g.rollover_priority,
      g.expires_at, g.rollover_expires_at, w.cash_nanos - v_cash, w.fee_nanos - v_fee, g.currency)
    returning * into c;
    w := ledger_receive(w, c, 'rollover', g.expires_at);
    g.remaining := g.remaining - v_rolled;
  end if;
  if v_rolled < p_amount then
    w := ledger_move(w, g, 'expiry', v_rolled - p_amount, 0, g.expires_at);
  end if;
  return w;
end $$;

-- The key that the schedule's grant of the period that begins at p_at has in its source.
create function schedule_key(s credit_schedule, p_at timestamptz) returns text language sql stable as $$
  select format('%s:%s', s.source_key, to_char(p_at at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"'))
$$;

-- Why a schedule must not grant for p_at: the period was granted before, or schedules have granted twice for that day (of UTC) already.
-- Null where it may; what is paid for is granted by other verbs and not counted. Periods that are caught up with are of different days.
create function ledger_runaway(s credit_schedule, p_at timestamptz) returns text language sql stable as $$
  select case
    when exists (
      select from credit_grant where account_id = s.account_id and source = s.source and source_key = schedule_key(s, p_at))
      then format('The period that began at %s UTC was granted before.', to_char(p_at at time zone 'UTC', 'YYYY-MM-DD HH24:MI'))
    when p_at > coalesce(s.released_through, '-infinity') and 2 <= (
      select count(*) from credit_grant g
      where g.account_id = s.account_id and g.unit_id = s.unit_id and g.source = s.source and g.cash_nanos = 0
        and date_trunc('day', g.starts_at, 'UTC') = date_trunc('day', p_at, 'UTC'))
      then format('There are two resets of %s already.', to_char(p_at at time zone 'UTC', 'YYYY-MM-DD'))
  end
$$;

-- The schedule's grant of the period that begins at p_at. It repays debt before anything of it is free.
create function ledger_grant_due(w open_wallet, s credit_schedule, p_at timestamptz) returns open_wallet language plpgsql as $$
declare
  g credit_grant;
  v_usage uuid := w.usage_id;
  v_operation bigint := w.operation_id;
  v_periods int := case when s.rollover_periods > 0 then s.rollover_periods end;
  v_key text := schedule_key(s, p_at);
  v_hash uuid := md5(format('%s:%s', s.source, v_key))::uuid;
begin
  w.usage_id := null;
  w.operation_id := nextval(pg_get_serial_sequence('operation_key', 'id'));
  insert into credit_grant (
    account_id, unit_id, source, source_key, granted, remaining, priority, starts_at, expires_at, cash_nanos, fee_nanos, currency,
    rollover_expires_at, rollover_cap, rollover_priority)
  values (
    w.account_id, w.unit_id, s.source, v_key, s.amount, 0, s.priority, p_at, anniversary(s.anchor_at, (s.skipped + s.granted + 1) * s.months), 0, 0, 'usd',
    anniversary(s.anchor_at, (s.skipped + s.granted + 1 + v_periods) * s.months), case when v_periods > 0 then s.rollover_cap end,
    case when v_periods > 0 then s.rollover_priority end)
  returning * into g;
  w := ledger_repay(ledger_receive(w, g, 'grant', p_at), p_at);
  insert into operation_key (account_id, verb, key_hash, fingerprint, id, actor, reason, created_at, grant_id, amount, balance_after, debt_after)
  overriding system value
  values (
    w.account_id, 'grant', v_hash, v_hash, w.operation_id, s.actor, s.reason, w.now, g.id, s.amount, w.balance, w.debt);
  update credit_schedule set granted = granted + 1 where account_id = w.account_id and unit_id = w.unit_id;
  w.usage_id := v_usage;
  w.operation_id := v_operation;
  return w;
end $$;

-- Gives a wallet its schedule, in the place of the one that it has; what that had to grant by now it has granted. What the new one has to
-- grant by now it grants; where it goes on with the old one (p_since), from the period that contains p_since on, and for none that begins before
-- the old one's next would have. One schedule per (account, source, source_key), for ever.
create function ledger_schedule(
  p_account bigint, p_key uuid, p_fingerprint uuid, p_actor text, p_reason text, p_unit smallint, p_source text, p_source_key text,
  p_amount bigint, p_priority smallint, p_anchor timestamptz, p_months smallint, p_ends timestamptz, p_rollover_periods smallint,
  p_rollover_cap bigint, p_rollover_priority smallint, p_since timestamptz)
returns operation_answer language plpgsql as $$
declare
  v_now timestamptz := ledger_lock(p_account);
  a operation_answer := ledger_replay(p_account, 'schedule', p_key, p_fingerprint);
  w open_wallet;
  v_operation bigint := nextval(pg_get_serial_sequence('operation_key', 'id'));
  s credit_schedule;
  v_skipped int := 0;
begin
  if a.outcome is not null then
    return a;
  end if;
  if exists (select from credit_schedule where account_id = p_account and source = p_source and source_key = p_source_key)
    or exists (select from credit_grant where account_id = p_account and source = p_source and starts_with(source_key, p_source_key || ':')) then
    return row('source_reused', null, null, null, null, null, null)::operation_answer;
  end if;
  w := ledger_open(p_account, p_unit, v_now, null, null);
  if p_since is not null then
    select * into s from credit_schedule where account_id = p_account and unit_id = p_unit;
    while anniversary(p_anchor, (v_skipped + 1) * p_months) <= p_since
      or anniversary(p_anchor, v_skipped * p_months) < anniversary(s.anchor_at, (s.skipped + s.granted) * s.months) loop
      v_skipped := v_skipped + 1;
    end loop;
  end if;
  insert into credit_schedule (
    account_id, unit_id, source, source_key, amount, priority, anchor_at, months, granted, skipped, ends_at, rollover_periods, rollover_cap,
    rollover_priority, actor, reason)
  values (
    p_account, p_unit, p_source, p_source_key, p_amount, p_priority, p_anchor, p_months, 0, v_skipped, p_ends, p_rollover_periods,
    p_rollover_cap, p_rollover_priority, p_actor, p_reason)
  on conflict (account_id, unit_id) do update set
    source = excluded.source, source_key = excluded.source_key, amount = excluded.amount, priority = excluded.priority,
    anchor_at = excluded.anchor_at, months = excluded.months, granted = 0, skipped = excluded.skipped, ends_at = excluded.ends_at,
    rollover_periods = excluded.rollover_periods, rollover_cap = excluded.rollover_cap, rollover_priority = excluded.rollover_priority,
    actor = excluded.actor, reason = excluded.reason, stopped_at = null, stopped_because = null, released_through = null;
  w.due_at := ledger_sooner(w.due_at, anniversary(p_anchor, v_skipped * p_months));
  w := ledger_close(w);
  insert into operation_key (account_id, verb, key_hash, fingerprint, id, actor, reason, created_at, amount, balance_after, debt_after)
  overriding system value
  values (p_account, 'schedule', p_key, p_fingerprint, v_operation, p_actor, p_reason, v_now, p_amount, w.balance, w.debt);
  return row('done', v_operation, null, p_amount, w.balance, w.debt, w.balance - w.held)::operation_answer;
end $$;

-- Gives a wallet's schedule an end: nothing is granted at p_ends or later (null: without end). One that has ended stays so.
create function ledger_unschedule(
  p_account bigint, p_key uuid, p_fingerprint uuid, p_actor text, p_reason text, p_unit smallint, p_ends timestamptz)
returns operation_answer language plpgsql as $$
declare
  v_now timestamptz := ledger_lock(p_account);
  a operation_answer := ledger_replay(p_account, 'unschedule', p_key, p_fingerprint);
  w open_wallet;
  s credit_schedule;
  v_operation bigint := nextval(pg_get_serial_sequence('operation_key', 'id'));
begin
  if a.outcome is not null then
    return a;
  end if;
  if not exists (select from credit_schedule where account_id = p_account and unit_id = p_unit and (ends_at is null or ends_at > v_now)) then
    return row('not_found', null, null, null, null, null, null)::operation_answer;
  end if;
  w := ledger_open(p_account, p_unit, v_now, null, null);
  update credit_schedule set ends_at = p_ends where account_id = p_account and unit_id = p_unit returning * into s;
  w.due_at := ledger_sooner(w.due_at, next_grant(s));
  w := ledger_close(w);
  insert into operation_key (account_id, verb, key_hash, fingerprint, id, actor, reason, created_at, amount, balance_after, debt_after)
  overriding system value
  values (p_account, 'unschedule', p_key, p_fingerprint, v_operation, p_actor, p_reason, v_now, 0, w.balance, w.debt);
  return row('done', v_operation, null, 0, w.balance, w.debt, w.balance - w.held)::operation_answer;
end $$;

-- Lets a schedule that was stopped go on: with what it should have granted meanwhile (p_grants), or with the next period that begins. Periods
-- that were granted are not granted again, whatever the row says.
create function ledger_restart(
  p_account bigint, p_key uuid, p_fingerprint uuid, p_actor text, p_reason text, p_unit smallint, p_grants boolean)
returns operation_answer language plpgsql as $$
declare
  v_now timestamptz := ledger_lock(p_account);
  a operation_answer := ledger_replay(p_account, 'restart', p_key, p_fingerprint);
  w open_wallet;
  s credit_schedule;
  v_operation bigint := nextval(pg_get_serial_sequence('operation_key', 'id'));
  v_granted int;
  v_last timestamptz;
  v_next int;
begin
  if a.outcome is not null then
    return a;
  end if;
  w := ledger_open(p_account, p_unit, v_now, null, null);
  select * into s from credit_schedule where account_id = p_account and unit_id = p_unit and stopped_at is not null;
  if not found then
    w := ledger_close(w);   -- what was due has happened all the same
    return row('not_found', null, null, null, null, null, null)::operation_answer;
  end if;
  select count(*), coalesce(max(starts_at), '-infinity') into v_granted, v_last from credit_grant g
  where g.account_id = p_account and g.source = s.source and starts_with(g.source_key, s.source_key || ':') and g.granted = s.amount;
  v_next := s.skipped + s.granted;
  while anniversary(s.anchor_at, v_next * s.months) <= case when p_grants then v_last else greatest(v_last, v_now) end loop
    v_next := v_next + 1;
  end loop;
  update credit_schedule
  set stopped_at = null, stopped_because = null, granted = v_granted, skipped = v_next - v_granted,
    released_through = case when p_grants then v_now else released_through end
  where account_id = p_account and unit_id = p_unit returning * into s;
  w.due_at := ledger_sooner(w.due_at, next_grant(s));
  w := ledger_close(w);
  insert into operation_key (account_id, verb, key_hash, fingerprint, id, actor, reason, created_at, amount, balance_after, debt_after)
  overriding system value
  values (p_account, 'restart', p_key, p_fingerprint, v_operation, p_actor, p_reason, v_now, 0, w.balance, w.debt);
  return row('done', v_operation, null, 0, w.balance, w.debt, w.balance - w.held)::operation_answer;
end $$;

-- Says what may roll over in all from now on, whatever each grant says. Rollovers above it expire, but for what holds cover; those that would
-- end first go first.
create function ledger_recap(
  p_account bigint, p_key uuid, p_fingerprint uuid, p_actor text, p_reason text, p_unit smallint, p_cap bigint)
returns operation_answer language plpgsql as $$
declare
  v_now timestamptz := ledger_lock(p_account);
  a operation_answer := ledger_replay(p_account, 'recap', p_key, p_fingerprint);
  w open_wallet;
  g credit_grant;
  v_operation bigint := nextval(pg_get_serial_sequence('operation_key', 'id'));
  v_above numeric;
  v_before bigint := 0;
  v_cut bigint;
begin
  if a.outcome is not null then
    return a;
  end if;
  w := ledger_open(p_account, p_unit, v_now, null, null);
  update wallet set rollover_cap = p_cap where account_id = p_account and unit_id = p_unit;
  select coalesce(sum(r.remaining::numeric + r.frozen), 0) - p_cap into v_above from credit_grant r
  where r.account_id = p_account and r.unit_id = p_unit and r.source = 'rollover' and not r.closed;
  for g in
    select * from credit_grant c
    where c.account_id = p_account and c.unit_id = p_unit and not c.closed and c.remaining > 0
    order by c.priority, c.expires_at, c.id
  loop
    exit when v_above <= 0;
    v_cut := least(v_above, g.remaining - greatest(0, least(g.remaining, w.held - v_before)));
    v_before := v_before + g.remaining;
    if g.source = 'rollover' and v_cut > 0 then
      w := ledger_move(w, g, 'expiry', -v_cut, 0, v_now);
      v_above := v_above - v_cut;
    end if;
  end loop;
  w := ledger_close(w);
  insert into operation_key (account_id, verb, key_hash, fingerprint, id, actor, reason, created_at, amount, balance_after, debt_after)
  overriding system value
  values (p_account, 'recap', p_key, p_fingerprint, v_operation, p_actor, p_reason, v_now, p_cap, w.balance, w.debt);
  return row('done', v_operation, null, p_cap, w.balance, w.debt, w.balance - w.held)::operation_answer;
end $$;

-- Applies what is due for one account: for those that nobody touches.
create function ledger_catch_up(p_account bigint) returns void language plpgsql as $$
declare
  v_now timestamptz := ledger_lock(p_account);
begin
  perform ledger_close(ledger_open(account_id, unit_id, v_now, null, null)) from wallet where account_id = p_account and due_at <= v_now;
end $$;

revoke all on function
  ledger_due, usage_first_end, ledger_unhold, ledger_expire, ledger_roll, ledger_grant_due, ledger_runaway, ledger_schedule, ledger_unschedule, ledger_restart, ledger_recap,
  ledger_catch_up from public;
alter function ledger_schedule security definer set search_path = public, pg_temp;
alter function ledger_unschedule security definer set search_path = public, pg_temp;
alter function ledger_restart security definer set search_path = public, pg_temp;
alter function ledger_recap security definer set search_path = public, pg_temp;
alter function ledger_catch_up security definer set search_path = public, pg_temp;
