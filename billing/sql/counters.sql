-- What counts against a limit: rows of usage_counter, one for each account, meter and window, made when a limit is first looked at.
--
-- A meter is "<what>/<window>": "cost/day" adds wholesale cost in nano-USD, "requests/hour" counts requests, any other name ("messages/day")
-- adds what the usage itself counts (its "counts"; null means one message). A window is half-open and its row never changes it, so that a
-- change of time zone or of billing period starts at the next window. Rows are derived: a missing one is recounted from the records, so
-- rows of windows that are over may be deleted, and the audit compares every row with its recount.

create table usage_counter (
  account_id bigint not null references account_state,
  meter text not null check (meter ~ '^[a-z0-9][a-z0-9_-]{0,63}/(hour|day|period|lifetime)$'),
  window_start timestamptz not null,
  window_end timestamptz not null,
  used not_negative not null,
  primary key (account_id, meter, window_start),
  constraint usage_counter_window check (window_start < window_end)
) with (fillfactor = 50);

-- Objects that a plan limits in number (agents, projects, automations): reserved when made, released when deleted.
create table usage_object (
  account_id bigint not null references account_state,
  meter text not null check (meter ~ '^[a-z0-9][a-z0-9_-]{0,63}$'),
  object_ref text not null check (length(object_ref) between 1 and 200),
  created_at timestamptz not null,
  released_at timestamptz,
  primary key (account_id, meter, object_ref)
);
create index usage_object_existing on usage_object (account_id, meter) where released_at is null;

-- A stop on one account, by staff or by a guard: why, by whom, until when. History is kept; at most one is in force.
create table usage_throttle (
  account_id bigint not null references account_state,
  id bigint generated always as identity,
  key_hash uuid not null,
  reason text not null check (length(reason) between 1 and 500),
  actor text not null check (length(actor) between 1 and 150),
  created_at timestamptz not null,
  ends_at timestamptz check (ends_at > created_at),
  lifted_at timestamptz,
  lifted_by text,
  primary key (account_id, id),
  unique (account_id, key_hash),
  constraint usage_throttle_lifted_by_somebody check ((lifted_at is null) = (lifted_by is null))
);
create unique index usage_throttle_in_force on usage_throttle (account_id) where lifted_at is null;

-- One limit as metering asks about it: at most p_allowed in the window, of which this call would use p_amount more. A limit that is not
-- enforced is counted and answered, and refuses nothing. Only a cap has a subject: see spend.sql.
create type usage_limit as (
  layer text, meter text, window_start timestamptz, window_end timestamptz, allowed bigint, amount bigint, enforced boolean, subject text);

-- The records that count in [p_start, p_end). Reads the account's rows from p_start on, and of the older ones those that were captured too late
-- for their own period: they keep the ids of their authorizations.
create function usage_counting(p_account bigint, p_start timestamptz, p_end timestamptz) returns setof usage_record language sql stable as $$
  select * from usage_record
  where account_id = p_account and id >= first_id(p_start - interval '10 minutes')   -- an event may be 5 minutes ahead of its record
    and counted_at is null and event_at >= p_start and event_at < p_end
  union all
  select * from usage_record where account_id = p_account and counted_at >= p_start and counted_at < p_end
$$;

-- How much of a meter the records (and open work) of [p_start, p_end) used.
create function usage_recount(p_account bigint, p_meter text, p_start timestamptz, p_end timestamptz) returns bigint language plpgsql stable as $$
declare
  v_key text := split_part(p_meter, '/', 1);
  v_used bigint;
begin
  if v_key = 'cost' then
    select coalesce(sum(cost_nanos), 0) into v_used from usage_counting(p_account, p_start, p_end);
    v_used := v_used + (
      select coalesce(sum(r.cost_nanos), 0) from usage_rating r join usage_record u on u.account_id = r.account_id and u.id = r.usage_id
      where r.account_id = p_account and coalesce(u.counted_at, u.event_at) >= p_start and coalesce(u.counted_at, u.event_at) < p_end);
  elsif v_key = 'requests' then
    select (select count(*) from usage_counting(p_account, p_start, p_end))
         + (select count(*) from open_authorization a where a.account_id = p_account and a.created_at >= p_start and a.created_at < p_end)
    into v_used;
  else
    select (select coalesce(sum(usage_counts(counts, v_key)), 0) from usage_counting(p_account, p_start, p_end)
            where outcome in ('captured', 'recorded', 'unpriced'))
         + (select coalesce(sum(usage_counts(a.counts, v_key)), 0) from open_authorization a
            where a.account_id = p_account and a.created_at >= p_start and a.created_at < p_end and a.state <> 'timed_out')
    into v_used;
  end if;
  return v_used;
end $$;

-- How many of p_key a piece of usage counts.
create function usage_counts(p_counts jsonb, p_key text) returns bigint language sql immutable as $$
  select case when p_counts is null then (p_key = 'messages')::int else coalesce((p_counts ->> p_key)::bigint, 0) end
$$;

-- The counter that covers p_now, as it is stored or as it would be made.
create function usage_counted(p_account bigint, p_limit usage_limit, p_now timestamptz) returns usage_counter language plpgsql stable as $$
declare
  c usage_counter;
begin
  select * into c from usage_counter
  where account_id = p_account and meter = p_limit.meter and window_start <= p_now
  order by window_start desc limit 1;
  if found and p_now < c.window_end then
    return c;
  end if;
  c.window_start := greatest(p_limit.window_start, coalesce(c.window_end, p_limit.window_start));
  c.window_end := p_limit.window_end;
  c.account_id := p_account;
  c.meter := p_limit.meter;
  c.used := usage_recount(p_account, c.meter, c.window_start, c.window_end);
  return c;
end $$;

-- How many objects of a kind exist.
create function usage_objects(p_account bigint, p_meter text) returns bigint language sql stable as $$
  select count(*) from usage_object where account_id = p_account and meter = p_meter and released_at is null
$$;

-- What open work comes to, counted anew: what the account's row says, once a limit was asked about.
create function usage_open_work(p_account bigint, out count bigint, out cost_nanos bigint) language sql stable as $$
  select count(*) filter (where state = 'open'), coalesce(sum(cost_nanos) filter (where state <> 'timed_out'), 0)::bigint
  from open_authorization where account_id = p_account
$$;

-- From now on the account's row says it. The caller has locked the account.
create function usage_begin_counting(p_account bigint) returns void language sql as $$
  update account_state set counted = true, open_count = o.count, open_cost_nanos = o.cost_nanos from usage_open_work(p_account) o
  where account_id = p_account
$$;

-- What every limit says now. Concurrency counts open work; cost adds the estimates of open work, which belongs to no window yet. A quota
-- without a window is of objects.
create type usage_look as (throttle_reason text, throttled_until timestamptz, used bigint[], resets_at timestamptz[], passed boolean[]);

create function usage_looked(p_account bigint, p_limits usage_limit[], p_now timestamptz) returns usage_look language plpgsql stable as $$
declare
  s account_state;
  l usage_limit;
  c usage_counter;
  k usage_look;
  v_used bigint;
begin
  select * into s from account_state where account_id = p_account;
  if not s.counted and cardinality(p_limits) > 0 then
    select o.count, o.cost_nanos into s.open_count, s.open_cost_nanos from usage_open_work(p_account) o;
  end if;
  if s.stopped and current_setting('tollgate.throttling', true) is distinct from 'off' then   -- set by ledger.throttling_off() alone
    select t.reason, t.ends_at into k.throttle_reason, k.throttled_until from usage_throttle t
    where t.account_id = p_account and t.lifted_at is null and (t.ends_at is null or t.ends_at > p_now);
  end if;
  k.used := '{}';
  k.resets_at := '{}';
  k.passed := '{}';
  foreach l in array p_limits loop
    c := null;
    if l.layer = 'concurrency' then
      v_used := s.open_count;
    elsif l.layer = 'cap' then
      select o.spent, o.window_end into v_used, c.window_end from usage_spend_of(p_account, l, p_now) o;
    elsif l.window_start is null then
      v_used := usage_objects(p_account, split_part(l.meter, '/', 1));
    else
      c := usage_counted(p_account, l, p_now);
      v_used := c.used + case when l.layer = 'cost' then s.open_cost_nanos else 0 end;
    end if;
    k.used := k.used || v_used;
    k.resets_at := k.resets_at || c.window_end;
    k.passed := k.passed || (not l.enforced or v_used + l.amount <= l.allowed);
  end loop;
  return k;
end $$;

-- The same, asked from outside: nothing is locked, counted or written.
create function usage_limits(p_account bigint, p_limits usage_limit[]) returns usage_look language sql stable as $$
  select usage_looked(p_account, p_limits, app_now())
$$;

-- Ends the stop whose end is over, and forgets the counters of windows that ended more than one window ago: what the verbs do in passing,
-- for an account that nobody touches.
create function usage_close_windows(p_account bigint) returns void language plpgsql as $$
declare
  v_now timestamptz := ledger_lock(p_account);
begin
  perform usage_ran_out(p_account);
  delete from usage_counter where account_id = p_account and window_end + (window_end - window_start) < v_now;
end $$;

-- Up to p_limit accounts above p_after for which usage_close_windows has something to do.
create function usage_with_closed_windows(p_after bigint, p_limit int) returns setof bigint language sql stable as $$
  select account_id from usage_throttle where account_id > p_after and lifted_at is null and ends_at <= app_now()
  union
  select account_id from usage_counter where account_id > p_after and window_end + (window_end - window_start) < app_now()
  order by 1 limit p_limit
$$;

-- Makes the counters of p_limits where they are missing, and forgets those of windows that ended more than one window ago. False where a
-- window that was asked about is not that of p_now: it ended while the caller waited for the lock, or the caller's clock differs.
create function usage_keep_counters(p_account bigint, p_limits usage_limit[], p_now timestamptz) returns boolean language plpgsql as $$
declare
  l usage_limit;
  c usage_counter;
begin
  foreach l in array p_limits loop
    if l.layer = 'cap' then
      if not usage_keep_spend(p_account, l, p_now) then
        return false;
      end if;
      continue;
    end if;
    continue when l.window_start is null or exists (
      select from usage_counter where account_id = p_account and meter = l.meter and window_start <= p_now and window_end > p_now);
    if p_now < l.window_start or l.window_end <= p_now then
      return false;
    end if;
    c := usage_counted(p_account, l, p_now);
    delete from usage_counter where account_id = p_account and meter = l.meter and window_end + (c.window_end - c.window_start) < p_now;
    insert into usage_counter select (c).*;
  end loop;
  return true;
end $$;

-- Adds usage of p_event_at to the counters that cover it. A counter that does not exist yet will be recounted.
create function usage_count(p_account bigint, p_event_at timestamptz, p_cost bigint, p_requests int, p_counts jsonb, p_times int) returns void
language plpgsql as $$
begin
  update usage_counter set used = used + usage_delta(meter, p_cost, p_requests, p_counts, p_times)
  where account_id = p_account and window_start <= p_event_at and p_event_at < window_end
    and usage_delta(meter, p_cost, p_requests, p_counts, p_times) <> 0;
end $$;

create function usage_delta(p_meter text, p_cost bigint, p_requests int, p_counts jsonb, p_times int) returns bigint language sql immutable as $$
  select case split_part(p_meter, '/', 1)
    when 'cost' then p_cost when 'requests' then p_requests else p_times * usage_counts(p_counts, split_part(p_meter, '/', 1)) end
$$;

-- Stops an account until p_ends (null: until it is lifted), once a key; a stop in force is replaced. False where p_ends is over.
create function usage_stop(p_account bigint, p_key uuid, p_actor text, p_reason text, p_ends timestamptz) returns boolean language plpgsql as $$
declare
  v_now timestamptz := ledger_lock(p_account);
begin
  if exists (select from usage_throttle where account_id = p_account and key_hash = p_key) then
    return true;
  end if;
  if p_ends <= v_now then
    return false;
  end if;
  perform usage_ran_out(p_account);
  update usage_throttle set lifted_at = v_now, lifted_by = p_actor where account_id = p_account and lifted_at is null;
  insert into usage_throttle (account_id, key_hash, reason, actor, created_at, ends_at) values (p_account, p_key, p_reason, p_actor, v_now, p_ends);
  update account_state set stopped = true where account_id = p_account;
  return true;
end $$;

-- A stop whose end is over ended by itself, then. The caller has locked the account.
create function usage_ran_out(p_account bigint) returns void language plpgsql as $$
begin
  update usage_throttle set lifted_at = ends_at, lifted_by = 'tollgate' where account_id = p_account and lifted_at is null and ends_at <= app_now();
  if found then
    update account_state set stopped = false where account_id = p_account;
  end if;
end $$;

-- Lifts the stop in force; false where there is none.
create function usage_resume(p_account bigint, p_actor text) returns boolean language plpgsql as $$
declare
  v_now timestamptz := ledger_lock(p_account);
begin
  perform usage_ran_out(p_account);
  update usage_throttle set lifted_at = v_now, lifted_by = p_actor where account_id = p_account and lifted_at is null;
  if not found then
    return false;
  end if;
  update account_state set stopped = false where account_id = p_account;
  return true;
end $$;

-- outcome: done | replayed | refused | not_found. A refusal says by which layer, and what of a throttle.
create type object_answer as (outcome text, used bigint, layer text, throttle_reason text, throttled_until timestamptz);

-- Reserves a place for an object. One that exists is never refused, also where a plan allows fewer; a new one by a throttle, by the verdict
-- that was reached outside (p_refusal), and where p_allowed exist already (null = any number), in the order of usage_authorize.
create function usage_reserve(p_account bigint, p_meter text, p_object text, p_refusal text, p_allowed bigint, p_enforced boolean)
returns object_answer language plpgsql as $$
declare
  v_now timestamptz := ledger_lock(p_account);
  k usage_look;
  said object_answer;
begin
  said.used := usage_objects(p_account, p_meter);
  if exists (select from usage_object where account_id = p_account and meter = p_meter and object_ref = p_object and released_at is null) then
    said.outcome := 'replayed';
    return said;
  end if;
  k := usage_looked(p_account, '{}', v_now);
  said.throttle_reason := k.throttle_reason;
  said.throttled_until := k.throttled_until;
  said.layer := case
    when p_refusal = 'kill_switch' then p_refusal
    when k.throttle_reason is not null then 'throttle'
    when p_refusal is not null then p_refusal
    when p_enforced and said.used >= p_allowed then 'quota'
  end;
  if said.layer is not null then
    said.outcome := 'refused';
    return said;
  end if;
  insert into usage_object (account_id, meter, object_ref, created_at) values (p_account, p_meter, p_object, v_now)
  on conflict (account_id, meter, object_ref) do update set created_at = v_now, released_at = null;
  said.outcome := 'done';
  said.used := said.used + 1;
  return said;
end $$;

create function usage_unreserve(p_account bigint, p_meter text, p_object text) returns object_answer language plpgsql as $$
declare
  v_now timestamptz := ledger_lock(p_account);
  v_outcome text := 'done';
begin
  update usage_object set released_at = v_now
  where account_id = p_account and meter = p_meter and object_ref = p_object and released_at is null;
  if not found then
    v_outcome := case when exists (select from usage_object where account_id = p_account and meter = p_meter and object_ref = p_object)
      then 'replayed' else 'not_found' end;
  end if;
  return row(v_outcome, usage_objects(p_account, p_meter), null, null, null)::object_answer;
end $$;
