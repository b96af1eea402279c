-- The verbs of the ledger, and the only code that writes its tables. billing/ledger.py is their typed face.
--
-- Every verb: lock the account → look the key up → (only for a new key) check → write. Expected refusals are answers, not exceptions.
-- Decisions are taken by app_now(), read after the lock. Rows are read in statements after the lock, never in the same one.
-- Verbs run with the owner's rights (SECURITY DEFINER) and a pinned search_path; the app's role can execute them and nothing else.

-- ------------------------------------------------------------------------------------------------------------------------------
-- Parts: a wallet is opened (locked, what is due applied), worked on in a variable, and closed (written once).

create type open_wallet as (
  account_id bigint, unit_id smallint, balance bigint, held bigint, debt bigint, seq bigint,
  usage_id uuid, operation_id bigint, now timestamptz,
  cash_nanos bigint, fee_nanos bigint,   -- moved so far by this verb
  due_at timestamptz);

-- Waits until no other transaction works on the account, and answers with the time. Only the verbs write these tables, and each begins
-- here, so the lock needs no row: docs/decisions/0017 says what that saves.
create function ledger_wait(p_account bigint) returns timestamptz language plpgsql as $$
begin
  perform pg_advisory_xact_lock(p_account);
  if current_setting('transaction_isolation') <> 'read committed' then   -- it would decide by what was true when it began
    raise exception 'the ledger works in READ COMMITTED transactions only' using errcode = 'active_sql_transaction';
  end if;
  return app_now();
end $$;

-- The same for an account that must have a ledger.
create function ledger_lock(p_account bigint) returns timestamptz language plpgsql as $$
declare
  v_now timestamptz := ledger_wait(p_account);
begin
  perform from account_state where account_id = p_account;
  if not found then
    raise exception 'account % has no ledger', p_account using errcode = 'no_data_found';
  end if;
  return v_now;
end $$;

-- What of a lump's cash (or fee) belongs to p_part of its p_whole credits, cumulatively: the parts of a whole always sum to it.
create function share(p_lump bigint, p_part bigint, p_whole bigint) returns bigint language sql immutable as $$
  select floor(p_lump::numeric * p_part / p_whole)::bigint
$$;

-- One movement of p_amount (signed) on one grant, with its entry. Cash and fee follow the credits.
create function ledger_move(w open_wallet, g credit_grant, p_kind entry_kind, p_amount bigint, p_debt_delta bigint, p_effective timestamptz)
returns open_wallet language plpgsql as $$
declare
  v_gone bigint := g.granted - g.remaining;
  v_cash bigint := 0;
  v_fee bigint := 0;
  v_thawed bigint := case when p_kind in ('freeze', 'unfreeze') then p_amount else 0 end;
begin
  if g.cash_nanos > 0 or g.fee_nanos > 0 then
    v_cash := share(g.cash_nanos, v_gone - p_amount, g.granted) - share(g.cash_nanos, v_gone, g.granted);
    v_fee := share(g.fee_nanos, v_gone - p_amount, g.granted) - share(g.fee_nanos, v_gone, g.granted);
  end if;
  update credit_grant
  set remaining = remaining + p_amount, frozen = frozen - v_thawed, closed = (remaining + p_amount = 0 and frozen = v_thawed)
  where account_id = g.account_id and id = g.id;
  if p_kind = 'refund' then
    update credit_grant set clawed = clawed - p_amount where account_id = g.account_id and id = g.id;
  end if;
  if p_amount > 0 then
    w.due_at := ledger_sooner(w.due_at, g.expires_at);
  end if;
  w.balance := w.balance + p_amount;
  w.debt := w.debt + p_debt_delta;
  w.seq := w.seq + 1;
  w.cash_nanos := w.cash_nanos + v_cash;
  w.fee_nanos := w.fee_nanos + v_fee;
  insert into ledger_entry values (
    w.account_id, w.unit_id, w.seq, g.id, p_kind, p_amount, p_debt_delta, w.balance, w.debt, v_cash, v_fee,
    case when p_kind not in ('expiry', 'rollover') then w.usage_id end,
    case when p_kind not in ('expiry', 'rollover') then w.operation_id end, p_effective, w.now);
  return w;
end $$;

-- The earlier of two times at which something is due; null is never.
create function ledger_sooner(p_one timestamptz, p_other timestamptz) returns timestamptz language sql immutable as $$
  select nullif(least(p_one, p_other), 'infinity')
$$;

-- A movement of debt alone.
create function ledger_owe(w open_wallet, p_kind entry_kind, p_debt_delta bigint) returns open_wallet language plpgsql as $$
begin
  w.debt := w.debt + p_debt_delta;
  w.seq := w.seq + 1;
  insert into ledger_entry values (
    w.account_id, w.unit_id, w.seq, null, p_kind, 0, p_debt_delta, w.balance, w.debt, 0, 0, w.usage_id, w.operation_id, w.now, w.now);
  return w;
end $$;

-- Takes p_amount from the grants in burn order: priority, earliest expiry, oldest. The caller has made sure that this much is there.
create function ledger_burn(w open_wallet, p_amount bigint, p_kind entry_kind, p_effective timestamptz) returns open_wallet language plpgsql as $$
declare
  g credit_grant;
  v_left bigint := p_amount;
  v_part bigint;
begin
  for g in
    select * from credit_grant c
    where c.account_id = w.account_id and c.unit_id = w.unit_id and not c.closed and c.remaining > 0
    order by c.priority, c.expires_at, c.id
  loop
    exit when v_left = 0;
    v_part := least(v_left, g.remaining);
    w := ledger_move(w, g, p_kind, -v_part, case when p_kind = 'debt_repaid' then -v_part else 0 end, p_effective);
    v_left := v_left - v_part;
  end loop;
  if v_left > 0 then
    raise exception 'wallet of account % holds % less than its balance says', w.account_id, v_left using errcode = 'data_corrupted';
  end if;
  return w;
end $$;

-- Loads a wallet (making an empty one the first time) and applies what is due (calendar.sql). p_needed: what must be free for the verb, where
-- that alone is what it asks; then holds that have ended are looked for only where it is not, or something is owed.
create function ledger_open(p_account bigint, p_unit smallint, p_now timestamptz, p_usage uuid, p_operation bigint, p_needed bigint default null)
returns open_wallet language plpgsql as $$
declare
  w open_wallet;
begin
  select account_id, unit_id, balance, held, debt, seq, p_usage, p_operation, p_now, 0, 0, due_at into w
  from wallet where account_id = p_account and unit_id = p_unit;
  if not found then
    insert into wallet (account_id, unit_id) values (p_account, p_unit);
    w := row(p_account, p_unit, 0, 0, 0, 0, p_usage, p_operation, p_now, 0, 0, null);
  end if;
  if w.due_at <= p_now
    or w.held > 0 and (p_needed is null or w.debt > 0 or w.balance - w.held < p_needed) and usage_first_end(p_account, p_unit) <= p_now then
    w := ledger_due(w);
    w.cash_nanos := 0;   -- what happened by itself is no part of what the verb will move
    w.fee_nanos := 0;
  end if;
  return w;
end $$;

-- Whatever has become free repays debt first; what is left of it expires if it is overdue; then the wallet is written.
create function ledger_close(w open_wallet) returns open_wallet language plpgsql as $$
declare
  v_cash bigint := w.cash_nanos;
  v_fee bigint := w.fee_nanos;
begin
  if w.debt > 0 then
    w := ledger_repay(w, w.now);
  end if;
  if w.due_at <= w.now then
    w := ledger_due(w);
  end if;
  update wallet set balance = w.balance, held = w.held, debt = w.debt, seq = w.seq, due_at = w.due_at
  where account_id = w.account_id and unit_id = w.unit_id;
  w.cash_nanos := v_cash;   -- the cash behind the verb's own movements, without that of expiry and old debt
  w.fee_nanos := v_fee;
  return w;
end $$;

-- What is free repays debt.
create function ledger_repay(w open_wallet, p_effective timestamptz) returns open_wallet language plpgsql as $$
begin
  if w.debt > 0 and w.balance > w.held then
    w := ledger_burn(w, least(w.debt, w.balance - w.held), 'debt_repaid', p_effective);
  end if;
  return w;
end $$;

-- ------------------------------------------------------------------------------------------------------------------------------
-- Opening an account's ledger, and the rare verbs: grant, adjust, reverse. Each has an actor, a reason and a key.

create function ledger_open_account(p_account bigint) returns void language sql as $$
  insert into account_state (account_id) values (p_account) on conflict do nothing
$$;

create type operation_answer as (
  outcome text,   -- done | replayed | key_reused | source_reused | insufficient | not_found | already_reversed
  operation_id bigint, grant_id bigint, amount bigint, balance bigint, debt bigint, available bigint);

create function ledger_replay(p_account bigint, p_verb text, p_key uuid, p_fingerprint uuid) returns operation_answer language plpgsql as $$
declare
  o operation_key;
begin
  select * into o from operation_key where account_id = p_account and verb = p_verb and key_hash = p_key;
  if not found then
    return null;
  end if;
  return row(case when o.fingerprint = p_fingerprint then 'replayed' else 'key_reused' end,
             o.id, o.grant_id, o.amount, o.balance_after, o.debt_after, null)::operation_answer;
end $$;

-- Adds a grant: p_verb 'grant' (kind grant) or 'adjust' (kind adjustment). It repays open debt before anything of it is free.
create function ledger_grant(
  p_account bigint, p_verb text, p_key uuid, p_fingerprint uuid, p_actor text, p_reason text, p_unit smallint, p_source text, p_source_key text,
  p_amount bigint, p_priority smallint, p_expires timestamptz, p_cash bigint, p_fee bigint, p_currency text,
  p_rollover_expires timestamptz, p_rollover_cap bigint, p_rollover_priority smallint)
returns operation_answer language plpgsql as $$
declare
  v_now timestamptz := ledger_lock(p_account);
  a operation_answer := ledger_replay(p_account, p_verb, p_key, p_fingerprint);
  w open_wallet;
  g credit_grant;
  v_operation bigint := nextval(pg_get_serial_sequence('operation_key', 'id'));
begin
  if a.outcome is not null then
    return a;
  end if;
  if exists (select from credit_grant where account_id = p_account and source = p_source and source_key = p_source_key) then
    return row('source_reused', null, null, null, null, null, null)::operation_answer;
  end if;
  w := ledger_open(p_account, p_unit, v_now, null, v_operation);
  insert into credit_grant (
    account_id, unit_id, source, source_key, granted, remaining, priority, starts_at, expires_at, cash_nanos, fee_nanos, currency,
    rollover_expires_at, rollover_cap, rollover_priority)
  values (
    p_account, p_unit, p_source, p_source_key, p_amount, 0, p_priority, v_now, coalesce(p_expires, 'infinity'), p_cash, p_fee, p_currency,
    p_rollover_expires, p_rollover_cap, p_rollover_priority)
  returning * into g;
  w := ledger_receive(w, g, case p_verb when 'grant' then 'grant' else 'adjustment' end::entry_kind, v_now);
  w := ledger_close(w);
  insert into operation_key (account_id, verb, key_hash, fingerprint, id, actor, reason, created_at, grant_id, amount, balance_after, debt_after)
  overriding system value
  values (p_account, p_verb, p_key, p_fingerprint, v_operation, p_actor, p_reason, v_now, g.id, p_amount, w.balance, w.debt);
  return row('done', v_operation, g.id, p_amount, w.balance, w.debt, w.balance - w.held)::operation_answer;
end $$;

-- A new grant's first movement: all of it comes in. Its cash moves when it is burnt, so nothing moves here.
create function ledger_receive(w open_wallet, g credit_grant, p_kind entry_kind, p_effective timestamptz) returns open_wallet language plpgsql as $$
begin
  update credit_grant set remaining = granted where account_id = g.account_id and id = g.id;
  w.balance := w.balance + g.granted;
  w.seq := w.seq + 1;
  w.due_at := ledger_sooner(w.due_at, g.expires_at);
  insert into ledger_entry values (
    w.account_id, w.unit_id, w.seq, g.id, p_kind, g.granted, 0, w.balance, w.debt, 0, 0,
    case when p_kind <> 'rollover' then w.usage_id end, case when p_kind <> 'rollover' then w.operation_id end, p_effective, w.now);
  return w;
end $$;

-- Takes p_amount (> 0) of free credits away: a staff correction. It never makes debt: more than is free is refused.
create function ledger_take_back(p_account bigint, p_key uuid, p_fingerprint uuid, p_actor text, p_reason text, p_unit smallint, p_amount bigint)
returns operation_answer language plpgsql as $$
declare
  v_now timestamptz := ledger_lock(p_account);
  a operation_answer := ledger_replay(p_account, 'adjust', p_key, p_fingerprint);
  w open_wallet;
  v_operation bigint := nextval(pg_get_serial_sequence('operation_key', 'id'));
begin
  if a.outcome is not null then
    return a;
  end if;
  w := ledger_open(p_account, p_unit, v_now, null, v_operation);
  if w.balance - w.held < p_amount then
    w := ledger_close(w);
    return row('insufficient', null, null, null, w.balance, w.debt, w.balance - w.held)::operation_answer;
  end if;
  w := ledger_close(ledger_burn(w, p_amount, 'adjustment', v_now));
  insert into operation_key (account_id, verb, key_hash, fingerprint, id, actor, reason, created_at, amount, balance_after, debt_after)
  overriding system value
  values (p_account, 'adjust', p_key, p_fingerprint, v_operation, p_actor, p_reason, v_now, -p_amount, w.balance, w.debt);
  return row('done', v_operation, null, -p_amount, w.balance, w.debt, w.balance - w.held)::operation_answer;
end $$;

-- Undoes the whole charge of one usage record: credits return to the grants that they came from (and expire at once if those have),
-- debt that it made is forgiven; what of that debt was repaid meanwhile comes back as a grant of its own.
create function ledger_reverse(p_account bigint, p_key uuid, p_fingerprint uuid, p_actor text, p_reason text, p_usage uuid)
returns operation_answer language plpgsql as $$
declare
  v_now timestamptz := ledger_lock(p_account);
  a operation_answer := ledger_replay(p_account, 'reverse', p_key, p_fingerprint);
  u usage_record;
  w open_wallet;
  g credit_grant;
  e ledger_entry;
  v_owed bigint := 0;
  v_amount bigint;
  v_grant bigint;
  v_operation bigint := nextval(pg_get_serial_sequence('operation_key', 'id'));
begin
  if a.outcome is not null then
    return a;
  end if;
  select * into u from usage_record where account_id = p_account and id = p_usage;
  u := usage_rated(u);
  if u.id is null or coalesce(u.price_nanos, 0) = 0 then
    return row('not_found', null, null, null, null, null, null)::operation_answer;
  end if;
  if exists (select from operation_key where account_id = p_account and verb = 'reverse' and target = p_usage) then
    return row('already_reversed', null, null, null, null, null, null)::operation_answer;
  end if;
  w := ledger_open(p_account, u.unit_id, v_now, null, v_operation);
  for e in
    select * from ledger_entry
    where account_id = p_account and unit_id = u.unit_id and seq >= u.first_seq and seq < u.first_seq + u.entries
    order by seq desc
  loop
    if e.grant_id is null then
      v_owed := v_owed + e.debt_delta;
    else
      select * into g from credit_grant where account_id = p_account and id = e.grant_id;
      w := ledger_move(w, g, 'reversal', -e.amount, 0, w.now);
    end if;
  end loop;
  v_amount := least(v_owed, w.debt);
  if v_amount > 0 then
    w := ledger_owe(w, 'reversal', -v_amount);
  end if;
  if v_owed > v_amount then
    insert into credit_grant (account_id, unit_id, source, source_key, granted, remaining, priority, starts_at, cash_nanos, fee_nanos, currency)
    values (p_account, u.unit_id, 'reversal', p_usage::text, v_owed - v_amount, 0, 0, v_now, 0, 0, 'usd')
    returning * into g;
    v_grant := g.id;
    w := ledger_receive(w, g, 'reversal', v_now);
  end if;
  w := ledger_close(w);
  insert into operation_key (account_id, verb, key_hash, fingerprint, id, target, actor, reason, created_at, grant_id, amount, balance_after, debt_after)
  overriding system value
  values (p_account, 'reverse', p_key, p_fingerprint, v_operation, p_usage, p_actor, p_reason, v_now, v_grant, u.price_nanos, w.balance, w.debt);
  insert into rollup_delta values (
    p_account, (u.event_at at time zone 'UTC')::date, u.model_id, u.feature_id, 0, 0, 0, -u.price_nanos, -u.value_nanos, w.cash_nanos, w.fee_nanos);
  return row('done', v_operation, v_grant, u.price_nanos, w.balance, w.debt, w.balance - w.held)::operation_answer;
end $$;

-- ------------------------------------------------------------------------------------------------------------------------------
-- The hot path: authorize → capture | release, or record afterwards.

-- What was asked for or done, as metering describes it.
create type usage_call as (
  model_id int, feature_id int, api_key_id bigint, rate_card_id int, price_ids int[], quantities bigint[],
  user_ref text, session_ref text, run_ref text, counts jsonb);

create type usage_answer as (
  outcome text,            -- done | replayed | key_reused | other_window | refused | debt | insufficient | already_resolved | exceeds_hold | not_found
  id uuid, state text, hold bigint, price_nanos bigint, cost_nanos bigint, waived_nanos bigint, owed_nanos bigint,
  balance bigint, available bigint, debt bigint,
  created_at timestamptz, expires_at timestamptz, remaining bigint[], meters text[],
  used bigint[], resets_at timestamptz[], throttle_reason text, throttled_until timestamptz);   -- what the limits said, for a new key

-- An answer that is nothing but its outcome.
create function usage_says(p_outcome text) returns usage_answer language plpgsql immutable as $$
declare
  said usage_answer;
begin
  said.outcome := p_outcome;
  return said;
end $$;

-- The first answer to a key of finished work, rebuilt from what never changes.
create function usage_replayed(u usage_record, p_outcome text) returns usage_answer language sql stable as $$
  select row(p_outcome, u.id, u.outcome::text, u.hold, u.price_nanos, u.cost_nanos, u.waived_nanos,
             (select coalesce(sum(e.debt_delta), 0)::bigint from ledger_entry e
              where e.account_id = u.account_id and e.unit_id = u.unit_id and e.seq >= u.first_seq and e.seq < u.first_seq + u.entries),
             u.balance_after, null, u.debt_after, coalesce(u.authorized_at, u.recorded_at), u.expires_at, u.remaining,
             u.meters, null, null, null, null)::usage_answer
$$;

-- May this account spend p_hold? Asked in this order: throttle, the verdict that was reached outside (p_refusal), p_limits, credits. The
-- key comes before all of them. p_in_debt: open debt alone refuses nothing; nothing is free beside it. What refuses is asked once more after holds that nobody resolved in time have been given back.
create function usage_authorize(
  p_account bigint, p_key uuid, p_fingerprint uuid, p_refusal text, p_call usage_call, p_unit smallint, p_hold bigint,
  p_cost bigint, p_minimum bigint, p_in_debt boolean, p_remaining bigint[], p_limits usage_limit[], p_lifetime interval, p_hard_lifetime interval,
  p_closes_at timestamptz, p_assumed_output bigint)
returns usage_answer language plpgsql as $$
declare
  v_now timestamptz := ledger_wait(p_account);
  f record;
  a open_authorization;
  u usage_record;
  w open_wallet;
  k usage_look;
  said usage_answer;
  v_ended boolean;
begin
  -- What the usual call depends on, in one statement: a new key, nothing to look for, nothing due, and enough that is free.
  select s.stopped, s.counted, v.balance, v.held, v.debt, v.due_at <= v_now as due, cardinality(p_limits) > 0 as limited,
    exists (select from open_authorization o where o.account_id = p_account and o.key_hash = p_key) as pending,
    exists (select from usage_record o where o.account_id = p_account and o.key_hash = p_key) as finished,
    not s.stopped and p_refusal is null and cardinality(p_limits) = 0 and (
      p_unit is null or v.debt = 0 and v.balance - v.held >= greatest(p_hold, p_minimum) and (v.due_at is null or v.due_at > v_now)) as usual
  into f from account_state s left join wallet v on v.account_id = s.account_id and v.unit_id = p_unit where s.account_id = p_account;
  if f.pending or f.finished or f.usual is not true then
    if f.counted is null then
      raise exception 'account % has no ledger', p_account using errcode = 'no_data_found';
    elsif f.pending then
      select * into a from open_authorization where account_id = p_account and key_hash = p_key;
      return usage_pending(a, case when a.fingerprint = p_fingerprint then 'replayed' else 'key_reused' end);
    elsif f.finished then
      select * into u from usage_record where account_id = p_account and key_hash = p_key;
      return usage_replayed(u, case when u.fingerprint = p_fingerprint then 'replayed' else 'key_reused' end);
    end if;
    said.hold := p_hold;
    said.created_at := v_now;
    if f.limited and not f.counted then
      perform usage_begin_counting(p_account);
    end if;
    if not usage_keep_counters(p_account, p_limits, v_now) then
      said.outcome := 'other_window';
      return said;
    end if;
    loop
      k := usage_looked(p_account, p_limits, v_now);
      said.used := k.used;
      said.resets_at := k.resets_at;
      said.throttle_reason := k.throttle_reason;
      said.throttled_until := k.throttled_until;
      said.outcome := case when k.throttle_reason is not null or p_refusal is not null or false = any (k.passed) then 'refused' end;
      said.state := case
        when p_refusal = 'kill_switch' then p_refusal
        when k.throttle_reason is not null then 'throttle'
        when p_refusal is not null then p_refusal
        else p_limits[array_position(k.passed, false)].layer
      end;
      if f.stopped and k.throttle_reason is null then
        perform usage_ran_out(p_account);
      end if;
      if said.outcome is null and p_unit is not null then
        w := ledger_open(p_account, p_unit, v_now, null, null, greatest(p_hold, p_minimum));
        said.outcome := case when w.debt > 0 and not p_in_debt then 'debt' when w.balance - w.held < greatest(p_hold, p_minimum) then 'insufficient' end;
        said.state := 'credits';
        v_ended := w.held <> f.held;   -- holds have ended, which the limits do not know yet
        if said.outcome is not null or f.due or v_ended then
          w := ledger_close(w);
        end if;
        f.balance := w.balance;
        f.held := w.held;
        f.debt := w.debt;
        continue when v_ended;
      end if;
      exit when said.outcome is null;
      if said.state = 'credits' then
        said.balance := w.balance;
        said.available := w.balance - w.held;
        said.debt := w.debt;
      end if;
      if said.state not in ('concurrency', 'cost', 'quota', 'cap') or usage_sweep_account(p_account, v_now) = 0 then
        return said;
      end if;
    end loop;
  end if;

  said.remaining := p_remaining || (f.balance - f.held - p_hold);
  if f.limited then
    select array_agg(l.meter order by n), said.remaining || array_agg(greatest(0, l.allowed - l.amount - k.used[n]) order by n)
    into said.meters, said.remaining from unnest(p_limits) with ordinality l(layer, meter, window_start, window_end, allowed, amount, enforced, subject, n);
  end if;
  if f.counted or f.limited then
    perform usage_count(p_account, v_now, 0, 1, p_call.counts, 1);
    update account_state set open_count = open_count + 1, open_cost_nanos = open_cost_nanos + p_cost where account_id = p_account;
  end if;
  with held as (
    update wallet set held = held + p_hold where account_id = p_account and unit_id = p_unit
  )
  insert into open_authorization (
    account_id, id, key_hash, fingerprint, unit_id, hold, held, cost_nanos, remaining, meters, counts, model_id, feature_id, api_key_id,
    rate_card_id, price_ids, quantities, user_ref, session_ref, run_ref, created_at, expires_at, hard_expires_at, closes_at,
    assumed_output_tokens)
  values (
    p_account, new_id(v_now), p_key, p_fingerprint, p_unit, p_hold, case when p_unit is null then 0 else p_hold end, p_cost, said.remaining,
    said.meters, p_call.counts, p_call.model_id, p_call.feature_id, p_call.api_key_id, p_call.rate_card_id, p_call.price_ids,
    p_call.quantities, p_call.user_ref, p_call.session_ref, p_call.run_ref, v_now, v_now + p_lifetime, v_now + p_hard_lifetime,
    p_closes_at, p_assumed_output)
  returning id, expires_at into said.id, said.expires_at;
  return row('done', said.id, 'authorized', p_hold, null, null, null, null, f.balance, f.balance - f.held - p_hold, f.debt, v_now, said.expires_at,
             said.remaining, said.meters, coalesce(said.used, '{}'), coalesce(said.resets_at, '{}'), said.throttle_reason,
             said.throttled_until)::usage_answer;
end $$;

-- Charges an opened wallet: what is free is burnt, the rest becomes debt.
create function usage_charge(w open_wallet, p_price bigint) returns open_wallet language plpgsql as $$
declare
  v_covered bigint := least(p_price, greatest(w.balance - w.held, 0));
begin
  if v_covered > 0 then
    w := ledger_burn(w, v_covered, 'usage', w.now);
  end if;
  if p_price > v_covered then
    w := ledger_owe(w, 'debt', p_price - v_covered);
  end if;
  return w;
end $$;

-- The record that an authorization moves into.
create function usage_of(a open_authorization, p_outcome usage_outcome, p_quantities bigint[], p_now timestamptz) returns usage_record language plpgsql as $$
declare
  u usage_record;
begin
  u.account_id := a.account_id;
  u.id := a.id;
  u.key_hash := a.key_hash;
  u.fingerprint := a.fingerprint;
  u.event_at := a.created_at;
  u.recorded_at := p_now;
  u.counted_at := case when a.closes_at < p_now and p_outcome = 'captured' then p_now end;
  u.authorized_at := a.created_at;
  u.expires_at := a.expires_at;
  u.hold := a.hold;
  u.remaining := a.remaining;
  u.meters := a.meters;
  u.counts := a.counts;
  u.outcome := p_outcome;
  u.model_id := a.model_id;
  u.feature_id := a.feature_id;
  u.rate_card_id := a.rate_card_id;
  u.api_key_id := a.api_key_id;
  u.unit_id := a.unit_id;
  u.price_ids := a.price_ids;
  u.quantities := p_quantities;
  u.user_ref := a.user_ref;
  u.session_ref := a.session_ref;
  u.run_ref := a.run_ref;
  u.assumed_output_tokens := a.assumed_output_tokens;
  u.waived_nanos := 0;
  u.entries := 0;
  return u;
end $$;

-- Writes finished work: the record, for the rollups what was done, charged and paid for, and for the next holds what an unsaid answer came to.
create function usage_write(u usage_record, w open_wallet, p_tokens bigint) returns usage_record language plpgsql as $$
begin
  u.balance_after := w.balance;
  u.debt_after := w.debt;
  u.seal := usage_seal(usage_sealed_record(u));
  insert into usage_record select (u).*;
  if u.outcome in ('captured', 'recorded') then
    insert into rollup_delta values (
      u.account_id, (u.event_at at time zone 'UTC')::date, u.model_id, u.feature_id, 1, p_tokens, u.cost_nanos, u.price_nanos, u.value_nanos,
      coalesce(w.cash_nanos, 0), coalesce(w.fee_nanos, 0));
  end if;
  if u.outcome = 'captured' and u.assumed_output_tokens is not null then
    insert into output_delta values (u.account_id, u.model_id, u.feature_id, u.quantities);
  end if;
  perform usage_spent(u.account_id, u.id, u.price_nanos);
  return u;
end $$;

-- Ends an authorization with work done: spends its hold (more or less of it) and gives the rest back.
-- p_overage 'charge' | 'cap' | 'reject' says what happens when the price is above the hold; 'absorb' waives all of it.
create function usage_capture(
  p_account bigint, p_id uuid, p_quantities bigint[], p_tokens bigint, p_price_ids int[], p_cost bigint, p_price bigint, p_value bigint, p_overage text)
returns usage_answer language plpgsql as $$
declare
  v_now timestamptz := ledger_wait(p_account);
  f record;
  a open_authorization;
  u usage_record;
  w open_wallet;
  v_capped boolean;
begin
  -- What the usual capture depends on, in one statement: the hold is open, nothing is due or owed, and the grant that comes first in burn
  -- order covers the price.
  select v.unit_id, v.balance, v.held, v.seq, g.id as grant_id, s.counted, o.created_at, o.held as promised, o.cost_nanos, o.model_id, o.feature_id,
    o.assumed_output_tokens is not null as assumed,
    case when g.cash_nanos = 0 then 0 else share(g.cash_nanos, g.gone + least(p_price, g.remaining), g.granted) - share(g.cash_nanos, g.gone, g.granted) end as cash,
    case when g.fee_nanos = 0 then 0 else share(g.fee_nanos, g.gone + least(p_price, g.remaining), g.granted) - share(g.fee_nanos, g.gone, g.granted) end as fee,
    o.state = 'open' and coalesce(o.extended_to, o.expires_at) > v_now and (o.closes_at is null or o.closes_at >= v_now) and v.debt = 0 and (v.due_at is null or v.due_at > v_now)
      and p_price > 0 and p_price <= least(g.remaining, v.balance - v.held + o.held)
      and p_overage <> 'absorb' and (p_price <= o.hold or p_overage = 'charge') as usual
  into f
  from open_authorization o
  join account_state s on s.account_id = o.account_id
  join wallet v on v.account_id = o.account_id and v.unit_id = o.unit_id
  join lateral (
    select c.*, c.granted - c.remaining as gone from credit_grant c
    where c.account_id = o.account_id and c.unit_id = o.unit_id and not c.closed and c.remaining > 0
    order by c.priority, c.expires_at, c.id limit 1) g on true
  where o.account_id = p_account and o.id = p_id;
  if f.usual then   -- one movement, and everything that it changes in one statement
    with ended as (
      delete from open_authorization where account_id = p_account and id = p_id returning *
    ), burnt as (
      update credit_grant set remaining = remaining - p_price, closed = (remaining = p_price and frozen = 0)
      where account_id = p_account and id = f.grant_id
    ), entry as (
      insert into ledger_entry values (
        p_account, f.unit_id, f.seq + 1, f.grant_id, 'usage', -p_price, 0, f.balance - p_price, 0, f.cash, f.fee, p_id, null, v_now, v_now)
    ), paid as (
      update wallet set balance = f.balance - p_price, held = f.held - f.promised, seq = f.seq + 1
      where account_id = p_account and unit_id = f.unit_id
    ), delta as (
      insert into rollup_delta values (
        p_account, (f.created_at at time zone 'UTC')::date, f.model_id, f.feature_id, 1, p_tokens, p_cost, p_price, p_value, f.cash, f.fee)
    )
    insert into usage_record (
      account_id, id, key_hash, fingerprint, event_at, recorded_at, authorized_at, expires_at, cost_nanos, price_nanos, value_nanos, hold,
      first_seq, balance_after, debt_after, outcome, model_id, feature_id, rate_card_id, api_key_id, unit_id, entries, price_ids, quantities,
      seal, remaining, meters, counts, assumed_output_tokens, user_ref, session_ref, run_ref)
    select
      p_account, p_id, e.key_hash, e.fingerprint, e.created_at, v_now, e.created_at, e.expires_at, p_cost, p_price, p_value, e.hold,
      f.seq + 1, f.balance - p_price, 0, 'captured', e.model_id, e.feature_id, e.rate_card_id, e.api_key_id, e.unit_id, 1, p_price_ids,
      p_quantities,
      usage_seal(usage_sealed(
        p_account, p_id, 'captured', e.created_at, v_now, null, e.model_id, null, p_quantities, e.rate_card_id, p_price_ids, e.unit_id, p_cost,
        p_price, p_value, 0, e.hold, f.seq + 1, usage_movement(f.grant_id, -p_price, 0, f.cash, f.fee))),
      e.remaining, e.meters, e.counts, e.assumed_output_tokens, e.user_ref, e.session_ref, e.run_ref
    from ended e
    returning hold, expires_at, remaining, meters, counts into u.hold, u.expires_at, u.remaining, u.meters, u.counts;
    if f.assumed then
      insert into output_delta values (p_account, f.model_id, f.feature_id, p_quantities);
    end if;
    if f.counted then
      perform usage_count(p_account, f.created_at, p_cost, 0, u.counts, 0);
      update account_state set open_count = open_count - 1, open_cost_nanos = open_cost_nanos - f.cost_nanos where account_id = p_account
      returning capped into v_capped;
      if v_capped then
        perform usage_spent(p_account, p_id, p_price);
      end if;
    end if;
    return row('done', p_id, 'captured', u.hold, p_price, p_cost, 0, 0, f.balance - p_price, null, 0, f.created_at, u.expires_at, u.remaining,
               u.meters, null, null, null, null)::usage_answer;
  end if;

  a := usage_unfinished(p_account, p_id, v_now);
  if a.id is null then
    return usage_settled(p_account, p_id, 'captured', p_quantities);
  end if;
  if a.state = 'awaiting_price' and a.captured <> p_quantities then
    return usage_pending(a, 'already_resolved');
  end if;
  if p_price > a.hold and p_overage = 'reject' then
    return usage_pending(a, 'exceeds_hold');
  end if;
  u := usage_of(a, 'captured', p_quantities, v_now);
  u.price_ids := p_price_ids;
  u.cost_nanos := p_cost;
  u.price_nanos := case p_overage when 'cap' then least(p_price, a.hold) when 'absorb' then 0 else p_price end;
  u.value_nanos := case when u.price_nanos = p_price then p_value else share(p_value, u.price_nanos, p_price) end;
  u.waived_nanos := p_price - u.price_nanos;
  if a.unit_id is not null then
    w := ledger_open(p_account, a.unit_id, v_now, p_id, null, u.price_nanos - a.held);
    w.held := w.held - a.held;
    u.first_seq := w.seq + 1;
    w := usage_charge(w, u.price_nanos);
    u.entries := w.seq + 1 - u.first_seq;
    w := ledger_close(w);
  end if;
  u := usage_write(u, w, p_tokens);
  perform usage_close(a);
  if u.counted_at is null then
    perform usage_count(p_account, u.event_at, u.cost_nanos, 0, u.counts, case a.state when 'timed_out' then 1 else 0 end);
  else   -- its period is closed: what it counted there when it was authorized moves here too
    perform usage_count(p_account, u.event_at, 0, -1, u.counts, case a.state when 'timed_out' then 0 else -1 end);
    perform usage_count(p_account, u.counted_at, u.cost_nanos, 1, u.counts, 1);
  end if;
  return usage_replayed(u, 'done');
end $$;

-- An authorization that is not finished, with what its end has brought: its hold has come back, or it is too late for its capture.
create function usage_unfinished(p_account bigint, p_id uuid, p_now timestamptz) returns open_authorization language plpgsql as $$
declare
  a open_authorization;
begin
  select * into a from open_authorization where account_id = p_account and id = p_id;
  while a.state <> 'awaiting_price' and usage_end(a) <= p_now - (case a.state when 'timed_out' then interval '7 days' else interval '0' end) loop
    perform usage_sweep_account(p_account, p_now);
    select * into a from open_authorization where account_id = p_account and id = p_id;
  end loop;
  return a;
end $$;

-- The answer about an authorization that is still unfinished.
create function usage_pending(a open_authorization, p_outcome text) returns usage_answer language sql immutable as $$
  select row(p_outcome, a.id, case a.state when 'open' then 'authorized' else a.state::text end, a.hold, null, null, null, null, null, null, null,
             a.created_at, a.expires_at, a.remaining, a.meters, null, null, null, null)::usage_answer
$$;

-- What is left of an authorization when it has moved into usage_record.
create function usage_close(a open_authorization) returns void language plpgsql as $$
begin
  delete from open_authorization where account_id = a.account_id and id = a.id;
  if a.state <> 'timed_out' then
    update account_state set open_count = open_count - (a.state = 'open')::int, open_cost_nanos = open_cost_nanos - a.cost_nanos
    where account_id = a.account_id and counted;
  end if;
end $$;

-- A capture or release of what is already finished: the same command again is answered again, another one is refused.
create function usage_settled(p_account bigint, p_id uuid, p_outcome usage_outcome, p_quantities bigint[]) returns usage_answer language plpgsql as $$
declare
  u usage_record;
begin
  select * into u from usage_record where account_id = p_account and id = p_id and authorized_at is not null;
  if not found then
    return usage_says('not_found');
  end if;
  return usage_replayed(u, case when u.outcome = p_outcome and (p_quantities is null or u.quantities = p_quantities) then 'replayed' else 'already_resolved' end);
end $$;

-- Keeps an authorization whose usage has no price yet: its hold stays, its concurrency slot is freed, its quantities are stored.
create function usage_await_price(p_account bigint, p_id uuid, p_quantities bigint[]) returns usage_answer language plpgsql as $$
declare
  v_now timestamptz := ledger_lock(p_account);
  a open_authorization;
  v_outcome text := 'done';
begin
  a := usage_unfinished(p_account, p_id, v_now);
  if a.id is null then
    return usage_settled(p_account, p_id, 'captured', p_quantities);
  end if;
  if a.state = 'awaiting_price' then
    v_outcome := case when a.captured = p_quantities then 'replayed' else 'already_resolved' end;
  else
    update open_authorization set state = 'awaiting_price', captured = p_quantities, captured_at = v_now where account_id = p_account and id = p_id;
    update account_state
    set open_count = open_count - (a.state = 'open')::int, open_cost_nanos = open_cost_nanos + case a.state when 'timed_out' then a.cost_nanos else 0 end
    where account_id = p_account and counted;
    perform usage_count(p_account, a.created_at, 0, 0, a.counts, case a.state when 'timed_out' then 1 else 0 end);
  end if;
  a.state := 'awaiting_price';
  return usage_pending(a, v_outcome);
end $$;

-- Ends an authorization without work: the whole hold comes back.
create function usage_release(p_account bigint, p_id uuid) returns usage_answer language plpgsql as $$
declare
  v_now timestamptz := ledger_lock(p_account);
  a open_authorization;
begin
  a := usage_unfinished(p_account, p_id, v_now);
  if a.id is null then
    return usage_settled(p_account, p_id, 'released', null);
  end if;
  if a.state = 'awaiting_price' then
    return usage_pending(a, 'already_resolved');
  end if;
  return usage_replayed(usage_end_without_work(a, 'released', v_now), 'done');
end $$;

create function usage_end_without_work(a open_authorization, p_outcome usage_outcome, p_now timestamptz) returns usage_record language plpgsql as $$
declare
  w open_wallet;
  u usage_record := usage_of(a, p_outcome, '{}', p_now);
begin
  if a.held > 0 then
    w := ledger_open(a.account_id, a.unit_id, p_now, a.id, null);
    w.held := w.held - a.held;
    w := ledger_close(w);
  end if;
  u.cost_nanos := 0;
  u.price_nanos := 0;
  u.value_nanos := 0;
  u := usage_write(u, w, 0);
  perform usage_close(a);
  perform usage_count(a.account_id, a.created_at, 0, 0, a.counts, case a.state when 'timed_out' then 0 else -1 end);
  return u;
end $$;

-- Moves the end of an open hold further out, never past its hard end.
create function usage_extend(p_account bigint, p_id uuid, p_lifetime interval) returns usage_answer language plpgsql as $$
declare
  v_now timestamptz := ledger_lock(p_account);
  a open_authorization;
begin
  update open_authorization
  set extended_to = nullif(greatest(expires_at, extended_to, least(hard_expires_at, v_now + p_lifetime)), expires_at)
  where account_id = p_account and id = p_id and state = 'open' and coalesce(extended_to, expires_at) > v_now
  returning * into a;
  if not found then
    a := usage_unfinished(p_account, p_id, v_now);
    return case when a.id is null then usage_settled(p_account, p_id, null, null) else usage_pending(a, 'already_resolved') end;
  end if;
  a.expires_at := usage_end(a);
  return usage_pending(a, 'done');
end $$;

-- When a hold ends.
create function usage_end(a open_authorization) returns timestamptz language sql immutable as $$
  select coalesce(a.extended_to, a.expires_at)
$$;

-- Records work that was done without an authorization. p_price null: it has no price yet (outcome unpriced). p_closes_at: when the period of
-- the event was closed for good, null where it is open; what is recorded later counts now. A set of events: settle.sql, with this meaning.
create function usage_record_one(
  p_account bigint, p_key uuid, p_fingerprint uuid, p_call usage_call, p_unit smallint, p_event_at timestamptz, p_tokens bigint,
  p_cost bigint, p_price bigint, p_value bigint, p_service_level text, p_closes_at timestamptz)
returns usage_answer language plpgsql as $$
declare
  v_now timestamptz := ledger_lock(p_account);
  u usage_record;
  w open_wallet;
begin
  select * into u from usage_record where account_id = p_account and key_hash = p_key;
  if found then
    return usage_replayed(u, case when u.fingerprint = p_fingerprint then 'replayed' else 'key_reused' end);
  end if;
  if exists (select from open_authorization where account_id = p_account and key_hash = p_key) then
    return usage_says('key_reused');
  end if;
  u.account_id := p_account;
  u.id := new_id(v_now);
  u.key_hash := p_key;
  u.fingerprint := p_fingerprint;
  u.event_at := p_event_at;
  u.recorded_at := v_now;
  u.counted_at := case when p_closes_at < v_now then v_now end;
  u.service_level := p_service_level;
  u.outcome := case when p_price is null then 'unpriced' else 'recorded' end;
  u.model_id := p_call.model_id;
  u.feature_id := p_call.feature_id;
  u.rate_card_id := p_call.rate_card_id;
  u.api_key_id := p_call.api_key_id;
  u.unit_id := p_unit;
  u.price_ids := p_call.price_ids;
  u.quantities := p_call.quantities;
  u.counts := p_call.counts;
  u.user_ref := p_call.user_ref;
  u.session_ref := p_call.session_ref;
  u.run_ref := p_call.run_ref;
  u.cost_nanos := p_cost;
  u.price_nanos := p_price;
  u.value_nanos := p_value;
  u.waived_nanos := 0;
  u.hold := 0;
  u.entries := 0;
  if p_price > 0 and p_unit is not null then
    w := ledger_open(p_account, p_unit, v_now, u.id, null, p_price);
    u.first_seq := w.seq + 1;
    w := usage_charge(w, p_price);
    u.entries := w.seq + 1 - u.first_seq;
    w := ledger_close(w);
  end if;
  perform usage_count(p_account, coalesce(u.counted_at, p_event_at), coalesce(p_cost, 0), 1, p_call.counts, 1);
  return usage_replayed(usage_write(u, w, p_tokens), 'done');
end $$;

-- Gives back up to p_limit holds that nobody resolved in time; they keep waiting for their capture, and end for good 7 days later.
-- Reads all open work: an index by its end would cost every authorization more than this costs a job.
create function usage_sweep(p_limit int) returns int language plpgsql as $$
declare
  v_account bigint;
  v_swept int := 0;
begin
  for v_account in
    select distinct account_id from (
      select account_id from open_authorization
      where expires_at <= app_now() and (extended_to is null or extended_to <= app_now())
        and (state = 'open' or (state = 'timed_out' and coalesce(extended_to, expires_at) <= app_now() - interval '7 days'))
      order by expires_at limit p_limit) due
    order by account_id
  loop
    v_swept := v_swept + usage_sweep_account(v_account, ledger_lock(v_account));
  end loop;
  return v_swept;
end $$;

-- The same for one account, which the caller has locked.
create function usage_sweep_account(p_account bigint, p_now timestamptz) returns int language plpgsql as $$
declare
  a open_authorization;
  v_swept int := 0;
begin
  for a in
    select * from open_authorization
    where account_id = p_account
      and ((state = 'open' and coalesce(extended_to, expires_at) <= p_now)
           or (state = 'timed_out' and coalesce(extended_to, expires_at) <= p_now - interval '7 days'))
    order by id limit 1000
  loop
    if a.state = 'open' then
      if a.held > 0 then
        perform ledger_close(ledger_open(p_account, a.unit_id, p_now, null, null));   -- every hold of the wallet that has ended
      else
        perform usage_time_out(a);
      end if;
    end if;
    if usage_end(a) <= p_now - interval '7 days' then
      select * into a from open_authorization where account_id = p_account and id = a.id;
      perform usage_end_without_work(a, 'timed_out', p_now);
    end if;
    v_swept := v_swept + 1;
  end loop;
  return v_swept;
end $$;

-- The end of a hold that nobody resolved: what it kept back has come free (ledger_unhold), and its capture may come for 7 days yet.
create function usage_time_out(a open_authorization) returns void language plpgsql as $$
begin
  update open_authorization set state = 'timed_out', held = 0 where account_id = a.account_id and id = a.id;
  update account_state set open_count = open_count - 1, open_cost_nanos = open_cost_nanos - a.cost_nanos where account_id = a.account_id and counted;
  perform usage_count(a.account_id, a.created_at, 0, 0, a.counts, -1);
end $$;

-- ------------------------------------------------------------------------------------------------------------------------------
-- Rights: the verbs run as the owner, with a pinned search_path; the parts cannot be called from outside.
do $$
declare
  f regprocedure;
begin
  for f in
    select p.oid::regprocedure from pg_proc p
    where p.pronamespace = 'public'::regnamespace and (p.proname like 'ledger\_%' or p.proname like 'usage\_%' or p.proname = 'share')
  loop
    execute format('revoke all on function %s from public', f);
  end loop;
  foreach f in array array[
    'ledger_open_account(bigint)',
    'ledger_grant(bigint, text, uuid, uuid, text, text, smallint, text, text, bigint, smallint, timestamptz, bigint, bigint, text, timestamptz, bigint, smallint)',
    'ledger_take_back(bigint, uuid, uuid, text, text, smallint, bigint)',
    'ledger_reverse(bigint, uuid, uuid, text, text, uuid)',
    'usage_authorize(bigint, uuid, uuid, text, usage_call, smallint, bigint, bigint, bigint, boolean, bigint[], usage_limit[], interval, interval, timestamptz, bigint)',
    'usage_limits(bigint, usage_limit[])',
    'usage_stop(bigint, uuid, text, text, timestamptz)',
    'usage_resume(bigint, text)',
    'usage_close_windows(bigint)',
    'usage_reserve(bigint, text, text, text, bigint, boolean)',
    'usage_unreserve(bigint, text, text)',
    'usage_capture(bigint, uuid, bigint[], bigint, int[], bigint, bigint, bigint, text)',
    'usage_await_price(bigint, uuid, bigint[])',
    'usage_release(bigint, uuid)',
    'usage_extend(bigint, uuid, interval)',
    'usage_record_one(bigint, uuid, uuid, usage_call, smallint, timestamptz, bigint, bigint, bigint, bigint, text, timestamptz)',
    'usage_sweep(integer)']::regprocedure[] loop
    -- One plan for all calls, by index: a plan that was made while a table was empty would read the whole of it later.
    execute format('alter function %s security definer set search_path = public, pg_temp'
                   ' set plan_cache_mode = force_generic_plan set enable_seqscan = off', f);
  end loop;
  alter function usage_sweep(integer) reset enable_seqscan;
end $$;
