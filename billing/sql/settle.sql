-- Settling a set: finished work without holds, one transaction, with the meaning of usage_record_one for each event in the order given.
--
-- The accounts are locked in id order before anything of them is read; what is read then is read in later statements. The burn-down of a
-- wallet is two rulers laid side by side: its events by cumulative price, its open grants in burn order by cumulative remainder. Where the
-- two overlap is a movement; what lies beyond the free credits is debt.

-- sum(bigint) answers numeric; this one stays an integer, and overflows as integers do (the set is then settled event by event).
create aggregate isum(bigint) (sfunc = int8pl, stype = bigint, initcond = '0', parallel = safe);

-- The entries that these events make, from the wallets and grants as they stand: it reads no table. An event that charges nothing (no id,
-- no unit, no price) makes none. p_wallets have applied what is due; p_grants are the open ones of them with something left.
create function usage_burn_down(
  p_id uuid[], p_account bigint[], p_unit smallint[], p_price bigint[], p_wallets wallet[], p_grants credit_grant[], p_now timestamptz)
returns setof ledger_entry language plpgsql immutable rows 100 as $$
begin
  return query
  with event as materialized (
    select e.*, isum(e.price) over (partition by e.account, e.unit order by e.n) as upto
    from unnest(p_id, p_account, p_unit, p_price) with ordinality as e (id, account, unit, price, n)
    where e.id is not null and e.unit is not null and e.price > 0
  ), lot as materialized (
    select g.*, isum(g.remaining) over (partition by g.account_id, g.unit_id order by g.priority, g.expires_at, g.id) as upto
    from unnest(p_grants) g
  ), movement as (
    select e.id, e.n, w.account_id, w.unit_id, w.balance, w.debt, w.seq, g.id as grant_id, g.upto as place, g.granted, g.cash_nanos, g.fee_nanos,
      least(e.upto, w.balance - w.held, g.upto) - greatest(e.upto - e.price, g.upto - g.remaining) as burnt, 0::bigint as owed,
      g.granted - g.remaining + greatest(e.upto - e.price - (g.upto - g.remaining), 0) as gone
    from event e
    join unnest(p_wallets) w on w.account_id = e.account and w.unit_id = e.unit
    join lot g on g.account_id = e.account and g.unit_id = e.unit
    where g.upto - g.remaining < least(e.upto, w.balance - w.held) and g.upto > e.upto - e.price
      and e.upto - e.price < w.balance - w.held
    union all
    select e.id, e.n, w.account_id, w.unit_id, w.balance, w.debt, w.seq, null, null, null, null, null, 0,
      e.upto - greatest(e.upto - e.price, w.balance - w.held), null
    from event e
    join unnest(p_wallets) w on w.account_id = e.account and w.unit_id = e.unit
    where e.upto > w.balance - w.held
  )
  select m.account_id, m.unit_id, (m.seq + row_number() over w)::not_negative, m.grant_id, case when m.grant_id is null then 'debt' else 'usage' end::entry_kind,
    -m.burnt, m.owed, (m.balance - isum(m.burnt) over w)::not_negative, (m.debt + isum(m.owed) over w)::not_negative,
    case when m.cash_nanos > 0 then share(m.cash_nanos, m.gone + m.burnt, m.granted) - share(m.cash_nanos, m.gone, m.granted) else 0 end,
    case when m.fee_nanos > 0 then share(m.fee_nanos, m.gone + m.burnt, m.granted) - share(m.fee_nanos, m.gone, m.granted) else 0 end,
    m.id, null::bigint, p_now, p_now
  from movement m
  window w as (partition by m.account_id, m.unit_id order by m.n, m.place);
end $$;

-- Settles a set whose accounts are locked. Every array has one element an event; price_ids and quantities are arrays written as text, because
-- their lengths differ. Answers in the order of the events.
create function usage_settle(
  p_now timestamptz, p_account bigint[], p_key uuid[], p_fingerprint uuid[], p_model int[], p_feature int[], p_api_key bigint[],
  p_rate_card int[], p_price_ids text[], p_quantities text[], p_user text[], p_session text[], p_run text[], p_counts jsonb[],
  p_service_level text[], p_unit smallint[], p_event_at timestamptz[], p_closes_at timestamptz[], p_tokens bigint[], p_cost bigint[],
  p_price bigint[], p_value bigint[])
returns usage_answer[] language plpgsql as $$
declare
  v_id uuid[];   -- an event's record; null where its key is known
  v_wallets wallet[];
  v_grants credit_grant[];
  v_missing boolean;
  v_due boolean;
  v_new usage_answer[];
begin
  select array_agg(case when e.nth = 1 and u.found is null and o.found is null then new_id(p_now) end order by e.n) into v_id
  from (
    select e.*, row_number() over (partition by e.account, e.key order by e.n) as nth
    from unnest(p_account, p_key) with ordinality as e (account, key, n)) e
  left join lateral (select true as found from usage_record r where r.account_id = e.account and r.key_hash = e.key limit 1) u on true
  left join lateral (select true as found from open_authorization a where a.account_id = e.account and a.key_hash = e.key limit 1) o on true;

  -- The wallets to charge and what is left in their grants. Where one is missing or something is due, they are opened as for one event.
  for pass in 1..2 loop
    select array_agg(x.w) filter (where (x.w).account_id is not null), bool_or((x.w).account_id is null),
      bool_or((x.w).due_at <= p_now or (x.w).held > 0 and usage_first_end((x.w).account_id, (x.w).unit_id) <= p_now)
    into v_wallets, v_missing, v_due
    from (
      select distinct account, unit from unnest(p_account, p_unit, p_price, v_id) e (account, unit, price, id)
      where id is not null and unit is not null and price > 0) e
    left join lateral (select w from wallet w where w.account_id = e.account and w.unit_id = e.unit limit 1) x on true;
    select array_agg(g) into v_grants
    from unnest(v_wallets) w
    join credit_grant g on g.account_id = w.account_id and g.unit_id = w.unit_id and not g.closed and g.remaining > 0;
    exit when pass = 2 or (v_missing or v_due) is not true;
    perform ledger_close(ledger_open(e.account, e.unit, p_now, null, null))
    from (
      select distinct account, unit from unnest(p_account, p_unit, p_price, v_id) e (account, unit, price, id)
      where id is not null and unit is not null and price > 0) e;
  end loop;

  with entry as (
    insert into ledger_entry select * from usage_burn_down(v_id, p_account, p_unit, p_price, v_wallets, v_grants, p_now) returning *
  ), burnt as (
    update credit_grant g set remaining = g.remaining + b.amount, closed = (g.remaining + b.amount = 0 and g.frozen = 0)
    from (select account_id, grant_id, isum(amount) as amount from entry where grant_id is not null group by 1, 2) b
    where g.account_id = b.account_id and g.id = b.grant_id
  ), paid as (
    update wallet w set balance = b.balance, debt = b.debt, seq = b.seq
    from (select account_id, unit_id, min(balance_after) as balance, max(debt_after) as debt, max(seq) as seq from entry group by 1, 2) b
    where w.account_id = b.account_id and w.unit_id = b.unit_id
  ), charge as (
    select usage_id, min(seq) as first, count(*) as entries, min(balance_after) as balance, max(debt_after) as debt,
      isum(debt_delta) as owed, isum(cash_nanos) as cash, isum(fee_nanos) as fee,
      string_agg(usage_movement(grant_id, amount, debt_delta, cash_nanos, fee_nanos), ' ' order by seq) as moved
    from entry group by 1
  ), event as materialized (
    select e.*, c.first, c.moved, coalesce(c.entries, 0) as entries, c.balance, c.debt, coalesce(c.owed, 0) as owed, coalesce(c.cash, 0) as cash,
      coalesce(c.fee, 0) as fee, case when e.price is null then 'unpriced' else 'recorded' end::usage_outcome as outcome,
      case when e.closes_at < p_now then p_now end as counted_at
    from unnest(
      v_id, p_account, p_key, p_fingerprint, p_model, p_feature, p_api_key, p_rate_card, p_price_ids, p_quantities, p_user, p_session, p_run,
      p_counts, p_service_level, p_unit, p_event_at, p_closes_at, p_tokens, p_cost, p_price, p_value) with ordinality as e (
      id, account, key, fingerprint, model, feature, api_key, rate_card, price_ids, quantities, user_ref, session_ref, run_ref,
      counts, service_level, unit, event_at, closes_at, tokens, cost, price, value, n)
    left join charge c on c.usage_id = e.id
    where e.id is not null
  ), record as (
    insert into usage_record (
      account_id, id, key_hash, fingerprint, event_at, recorded_at, counted_at, cost_nanos, price_nanos, value_nanos, first_seq, balance_after,
      debt_after, outcome, model_id, feature_id, rate_card_id, api_key_id, unit_id, entries, price_ids, quantities, counts, service_level,
      user_ref, session_ref, run_ref, seal)
    select account, id, key, fingerprint, event_at, p_now, counted_at, cost, price, value, first, balance,
      debt, outcome, model, feature, rate_card, api_key, unit, entries, price_ids::int[], quantities::bigint[], counts, service_level,
      user_ref, session_ref, run_ref,
      usage_seal(usage_sealed(
        account, id, outcome::text, event_at, p_now, counted_at, model, service_level, quantities::bigint[], rate_card, price_ids::int[], unit,
        cost, price, value, 0, 0, first, moved))
    from event
  ), delta as (
    insert into rollup_delta
    select account, (event_at at time zone 'UTC')::date, model, feature, count(*), isum(tokens), isum(cost), isum(price), isum(value), isum(cash), isum(fee)
    from event where outcome = 'recorded' group by 1, 2, 3, 4
  ), counted as (
    update usage_counter c set used = c.used + x.used
    from (
      select c.account_id, c.meter, c.window_start, isum(usage_delta(c.meter, coalesce(e.cost, 0), 1, e.counts, 1)) as used
      from event e
      cross join lateral (
        select * from usage_counter c
        where c.account_id = e.account and c.window_start <= coalesce(e.counted_at, e.event_at) and coalesce(e.counted_at, e.event_at) < c.window_end) c
      group by 1, 2, 3) x
    where c.account_id = x.account_id and c.meter = x.meter and c.window_start = x.window_start and x.used <> 0
  )
  select array_agg(usage_done(e.id, e.outcome, e.price, e.cost, e.owed, e.balance, e.debt, p_now) order by e.n) into v_new from event e;

  if array_position(v_id, null) is null then
    return v_new;
  end if;
  return (
    select array_agg(coalesce(f.answer, case when u.id is null then usage_says('key_reused')
      else usage_replayed(u, case when u.fingerprint = e.fingerprint then 'replayed' else 'key_reused' end) end) order by e.n)
    from unnest(p_account, p_key, p_fingerprint, v_id) with ordinality as e (account, key, fingerprint, id, n)
    left join (select a.id, a as answer from unnest(v_new) a) f on f.id = e.id
    left join lateral (select * from usage_record r where e.id is null and r.account_id = e.account and r.key_hash = e.key limit 1) u on true);
end $$;

-- The first answer about a record that had no hold; usage_replayed rebuilds the same.
create function usage_done(
  p_id uuid, p_outcome usage_outcome, p_price bigint, p_cost bigint, p_owed bigint, p_balance bigint, p_debt bigint, p_now timestamptz)
returns usage_answer language sql stable as $$
  select row('done', p_id, p_outcome::text, 0::bigint, p_price, p_cost, 0::bigint, p_owed, p_balance, null, p_debt, p_now,
             null, null, null, null, null, null, null)::usage_answer
$$;

-- Records a set. p_price null: the event has no price yet. An event whose key was used before, also earlier in the set, is answered and
-- changes nothing. Where the set overflows it is recorded event by event, so that one event does not take others along (outcome overflow).
create function usage_record_many(
  p_account bigint[], p_key uuid[], p_fingerprint uuid[], p_model int[], p_feature int[], p_api_key bigint[], p_rate_card int[],
  p_price_ids text[], p_quantities text[], p_user text[], p_session text[], p_run text[], p_counts jsonb[], p_service_level text[],
  p_unit smallint[], p_event_at timestamptz[], p_closes_at timestamptz[], p_tokens bigint[], p_cost bigint[], p_price bigint[], p_value bigint[])
returns setof usage_answer language plpgsql as $$
declare
  v_locked int;
  v_known int;
  v_capped boolean;
  v_answers usage_answer[];
begin
  perform ledger_wait(account) from (select distinct account from unnest(p_account) account order by account) one_by_one;
  get diagnostics v_locked = row_count;
  select count(*), bool_or(capped) into v_known, v_capped from account_state where account_id = any (p_account);
  if v_locked <> v_known then
    raise exception 'an account of the set has no ledger' using errcode = 'no_data_found';
  end if;
  begin
    v_answers := usage_settle(
      app_now(), p_account, p_key, p_fingerprint, p_model, p_feature, p_api_key, p_rate_card, p_price_ids, p_quantities, p_user, p_session,
      p_run, p_counts, p_service_level, p_unit, p_event_at, p_closes_at, p_tokens, p_cost, p_price, p_value);
    if v_capped then
      perform usage_spent(p_account[n], id, price_nanos)
      from (select * from unnest(v_answers) with ordinality) as a (
        outcome, id, state, hold, price_nanos, cost_nanos, waived_nanos, owed_nanos, balance, available, debt, created_at, expires_at,
        remaining, meters, used, resets_at, throttle_reason, throttled_until, n)
      where outcome = 'done';
    end if;
    return query select a.* from unnest(v_answers) a;
    return;
  exception when numeric_value_out_of_range then
    null;   -- settled below, one by one
  end;
  for i in 1 .. cardinality(p_account) loop
    begin
      return next usage_record_one(
        p_account[i], p_key[i], p_fingerprint[i],
        row(p_model[i], p_feature[i], p_api_key[i], p_rate_card[i], p_price_ids[i]::int[], p_quantities[i]::bigint[], p_user[i], p_session[i],
            p_run[i], p_counts[i])::usage_call,
        p_unit[i], p_event_at[i], p_tokens[i], p_cost[i], p_price[i], p_value[i], p_service_level[i], p_closes_at[i]);
    exception when numeric_value_out_of_range then
      return next usage_says('overflow');
    end;
  end loop;
end $$;

-- The record with the rating that came later laid over it, if there is one.
create function usage_rated(u usage_record) returns usage_record language plpgsql stable as $$
declare
  r usage_rating;
begin
  if u.outcome = 'unpriced' then
    select * into r from usage_rating where account_id = u.account_id and usage_id = u.id;
    if found then
      u.outcome := 'recorded';
      u.cost_nanos := r.cost_nanos;
      u.price_nanos := r.price_nanos;
      u.value_nanos := r.value_nanos;
      u.waived_nanos := r.waived_nanos;
      u.first_seq := r.first_seq;
      u.balance_after := r.balance_after;
      u.debt_after := r.debt_after;
      u.rate_card_id := r.rate_card_id;
      u.unit_id := r.unit_id;
      u.entries := r.entries;
      u.price_ids := r.price_ids;
    end if;
  end if;
  return u;
end $$;

-- Rates an unpriced record, once: a second rating is answered with the first. p_charge false: it comes too late, the price is waived.
create function usage_rate(
  p_account bigint, p_id uuid, p_rate_card int, p_price_ids int[], p_unit smallint, p_tokens bigint, p_cost bigint, p_price bigint,
  p_value bigint, p_charge boolean)
returns usage_answer language plpgsql as $$
declare
  v_now timestamptz := ledger_lock(p_account);
  u usage_record;
  r usage_rating;
  w open_wallet;
begin
  select * into u from usage_record where account_id = p_account and id = p_id;
  if not found or u.outcome <> 'unpriced' then
    return usage_says('not_found');
  end if;
  u := usage_rated(u);
  if u.outcome <> 'unpriced' then
    return usage_replayed(u, 'replayed');
  end if;
  r.account_id := p_account;
  r.usage_id := p_id;
  r.rated_at := v_now;
  r.cost_nanos := p_cost;
  r.price_nanos := case when p_charge then p_price else 0 end;
  r.value_nanos := case when p_charge then p_value else 0 end;
  r.waived_nanos := p_price - r.price_nanos;
  r.rate_card_id := p_rate_card;
  r.unit_id := p_unit;
  r.price_ids := p_price_ids;
  r.entries := 0;
  if r.price_nanos > 0 and p_unit is not null then
    w := ledger_open(p_account, p_unit, v_now, p_id, null);
    r.first_seq := w.seq + 1;
    w := usage_charge(w, r.price_nanos);
    r.entries := w.seq + 1 - r.first_seq;
    w := ledger_close(w);
  end if;
  r.balance_after := w.balance;
  r.debt_after := w.debt;
  r.seal := usage_seal(usage_sealed_rating(u, r));
  insert into usage_rating select (r).*;
  insert into rollup_delta values (
    p_account, (u.event_at at time zone 'UTC')::date, u.model_id, u.feature_id, 1, p_tokens, r.cost_nanos, r.price_nanos, r.value_nanos,
    coalesce(w.cash_nanos, 0), coalesce(w.fee_nanos, 0));
  perform usage_count(p_account, coalesce(u.counted_at, u.event_at), r.cost_nanos, 0, null, 0);
  perform usage_spent(p_account, p_id, r.price_nanos);
  return usage_replayed(usage_rated(u), 'done');
end $$;

-- Plans are made once a session and never for what the tables looked like when they were empty: rows are always found by their index, and
-- what is in memory is joined by hashing.
alter function usage_burn_down set search_path = public, pg_temp set plan_cache_mode = force_generic_plan set enable_nestloop = off;
alter function usage_settle set search_path = public, pg_temp set plan_cache_mode = force_generic_plan set enable_seqscan = off;
alter function usage_record_many security definer set search_path = public, pg_temp;
alter function usage_rate security definer set search_path = public, pg_temp;
revoke all on function usage_burn_down, usage_settle, usage_done, usage_record_many, usage_rated, usage_rate from public;
