-- What a run, a session, a member, a key or the whole account has spent in a window: counted only where a policy caps it.
--
-- A row of usage_spend_window says that one kind of subject is being added up in one window: from then on whatever settles adds its price
-- to the subject's row, or makes it. So a subject without a row has spent nothing there. A window is made when a cap is first asked about in
-- it, by one recount of what all its subjects spent, and never changes; windows that are over are deleted with their rows. Spend is the
-- price that was charged, in nanos of the wallet's unit, in the window of the event itself, also where a reversal gave it back later. The
-- audit compares all of it with a recount.

create table usage_spend_window (
  account_id bigint not null references account_state,
  kind text not null check (kind in ('run', 'session', 'member', 'key', 'pool')),
  span text not null check (span in ('hour', 'day', 'period', 'lifetime')),
  window_start timestamptz not null,
  window_end timestamptz not null,
  primary key (account_id, kind, span, window_start),
  constraint usage_spend_window_forwards check (window_start < window_end)
);

create table usage_spend (
  account_id bigint not null,
  kind text not null,
  span text not null,
  window_start timestamptz not null,
  subject text not null,   -- the client app's own name of it; of a key its number, of the pool empty
  spent not_negative not null,
  primary key (account_id, kind, span, window_start, subject),
  foreign key (account_id, kind, span, window_start) references usage_spend_window on delete cascade
) with (fillfactor = 50);

-- Whose spend a piece of work is, as p_kind; null: nobody's.
create function usage_subject(p_kind text, p_user text, p_session text, p_run text, p_api_key bigint) returns text language sql immutable as $$
  select case p_kind when 'run' then p_run when 'session' then p_session when 'member' then p_user when 'key' then p_api_key::text else '' end
$$;

-- What the records of [p_start, p_end) charged, by subject; p_subject null: of all of them. Reads the account's rows from p_start on.
create function usage_spend_recount(p_account bigint, p_kind text, p_subject text, p_start timestamptz, p_end timestamptz)
returns table (subject text, spent bigint) language sql stable as $$
  select x.subject, sum(x.price)::bigint
  from (
    select usage_subject(p_kind, u.user_ref, u.session_ref, u.run_ref, u.api_key_id) as subject, coalesce(u.price_nanos, r.price_nanos) as price
    from usage_record u left join usage_rating r on u.outcome = 'unpriced' and r.account_id = u.account_id and r.usage_id = u.id
    where u.account_id = p_account and u.id >= first_id(p_start - interval '10 minutes')   -- an event may be 5 minutes ahead of its record
      and u.event_at >= p_start and u.event_at < p_end) x
  where x.price > 0 and x.subject is not null and (p_subject is null or x.subject = p_subject)
  group by 1
$$;

-- What the subject of a cap has spent in its window so far, and holds for work that is not finished, which belongs to no window yet.
create function usage_spend_of(p_account bigint, p_limit usage_limit, p_now timestamptz, out spent bigint, out window_end timestamptz)
language plpgsql stable as $$
declare
  v_kind text := usage_spend_kind(p_limit.meter);
  w usage_spend_window;
begin
  select * into w from usage_spend_window c
  where c.account_id = p_account and c.kind = v_kind and c.span = split_part(p_limit.meter, '/', 2) and c.window_start <= p_now and p_now < c.window_end;
  if found then
    select s.spent into spent from usage_spend s
    where s.account_id = p_account and s.kind = v_kind and s.span = w.span and s.window_start = w.window_start and s.subject = p_limit.subject;
    window_end := w.window_end;
  else
    select r.spent into spent from usage_spend_recount(p_account, v_kind, p_limit.subject, p_limit.window_start, p_limit.window_end) r;
    window_end := p_limit.window_end;
  end if;
  spent := coalesce(spent, 0) + (
    select coalesce(sum(a.hold), 0)::bigint from open_authorization a
    where a.account_id = p_account and a.state <> 'timed_out'
      and usage_subject(v_kind, a.user_ref, a.session_ref, a.run_ref, a.api_key_id) = p_limit.subject);
end $$;

-- "spend:run/day" is about runs.
create function usage_spend_kind(p_meter text) returns text language sql immutable as $$
  select split_part(split_part(p_meter, '/', 1), ':', 2)
$$;

-- Makes the window of a cap where it is missing, and forgets those that ended more than a window ago. False where it is not that of p_now.
create function usage_keep_spend(p_account bigint, p_limit usage_limit, p_now timestamptz) returns boolean language plpgsql as $$
declare
  v_kind text := usage_spend_kind(p_limit.meter);
  v_span text := split_part(p_limit.meter, '/', 2);
  v_start timestamptz;
begin
  if exists (
    select from usage_spend_window
    where account_id = p_account and kind = v_kind and span = v_span and window_start <= p_now and p_now < window_end) then
    return true;
  end if;
  if p_now < p_limit.window_start or p_limit.window_end <= p_now then
    return false;
  end if;
  delete from usage_spend_window
  where account_id = p_account and kind = v_kind and span = v_span and window_end + (p_limit.window_end - p_limit.window_start) < p_now;
  select greatest(p_limit.window_start, max(window_end)) into v_start
  from usage_spend_window where account_id = p_account and kind = v_kind and span = v_span;
  insert into usage_spend_window values (p_account, v_kind, v_span, v_start, p_limit.window_end);
  insert into usage_spend
  select p_account, v_kind, v_span, v_start, r.subject, r.spent
  from usage_spend_recount(p_account, v_kind, null, v_start, p_limit.window_end) r;
  update account_state set capped = true where account_id = p_account and not capped;
  return true;
end $$;

-- Adds what a record was charged to whoever spent it. Nothing where nothing of the account is capped.
create function usage_spent(p_account bigint, p_id uuid, p_price bigint) returns void language plpgsql as $$
begin
  if p_price > 0 and exists (select from account_state where account_id = p_account and capped) then
    insert into usage_spend as s (account_id, kind, span, window_start, subject, spent)
    select w.account_id, w.kind, w.span, w.window_start, x.subject, p_price
    from usage_record u
    join usage_spend_window w on w.account_id = u.account_id and w.window_start <= u.event_at and u.event_at < w.window_end
    cross join lateral (select usage_subject(w.kind, u.user_ref, u.session_ref, u.run_ref, u.api_key_id) as subject) x
    where u.account_id = p_account and u.id = p_id and x.subject is not null
    on conflict (account_id, kind, span, window_start, subject) do update set spent = s.spent + excluded.spent;
  end if;
end $$;
