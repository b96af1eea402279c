-- What the runaway guard (metering/guard.py) does in the ledger, and what it learns.

-- Raises the busiest window of a day of these accounts to what each has spent in the one that ends now.
create function guard_peaks(p_day date, p_window int, p_account bigint[], p_spent bigint[]) returns void language sql as $$
  insert into metering_guardpeak as k (account_id, day, window_minutes, peak_nanos)
  select account, p_day, p_window, spent from unnest(p_account, p_spent) x (account, spent) order by account
  on conflict (account_id, day, window_minutes) do update set peak_nanos = excluded.peak_nanos where k.peak_nanos < excluded.peak_nanos
$$;

-- Stops an account as usage_stop does, unless somebody else has stopped it: a person's stop is never replaced.
create function guard_stop(p_account bigint, p_key uuid, p_actor text, p_reason text, p_ends timestamptz) returns boolean
language plpgsql security definer set search_path = public, pg_temp as $$
begin
  perform ledger_lock(p_account);
  perform usage_ran_out(p_account);
  if exists (select from usage_throttle where account_id = p_account and lifted_at is null and actor <> p_actor) then
    return false;
  end if;
  return usage_stop(p_account, p_key, p_actor, p_reason, p_ends);
end $$;

-- Lifts the guard's own stop; false where there is none.
create function guard_resume(p_account bigint, p_actor text, p_by text) returns boolean
language plpgsql security definer set search_path = public, pg_temp as $$
begin
  perform ledger_lock(p_account);
  perform usage_ran_out(p_account);
  if not exists (select from usage_throttle where account_id = p_account and lifted_at is null and actor = p_actor) then
    return false;
  end if;
  return usage_resume(p_account, p_by);
end $$;

revoke all on function guard_peaks, guard_stop, guard_resume from public;

-- Customers' pages read where they stand and why.
do $$
declare
  v_table text;
begin
  foreach v_table in array array['metering_guardstate', 'metering_guardstep'] loop
    execute format('alter table %I enable row level security', v_table);
    execute format('create policy others on %I using (current_user <> ''authenticated'')', v_table);
    execute format('create policy tenant on %I for select to authenticated using (account_id in (select visible_account_ids()))', v_table);
  end loop;
end $$;
grant select on metering_guardstate to authenticated;
grant select (id, account_id, kind, ref, before, step, mode, at, reason) on metering_guardstep to authenticated;
