-- The tables of the ledger. Only the verbs in ledger.sql write them; the triggers below and the privileges of config/roles.py see to it.
-- Amounts are nanos (10⁻⁹) of the wallet's unit, costs are nano-USD. Every table's key begins with the account.

create function app_now() returns timestamptz language sql volatile as $$
  select coalesce(nullif(current_setting('tollgate.now', true), '')::timestamptz, clock_timestamp())
$$;
comment on function app_now() is 'The ledger''s clock: clock_timestamp(), unless a test or a simulation set tollgate.now for its transaction.';

-- Time-ordered ids keep the primary key''s inserts on the right-hand pages; before PostgreSQL 18 they are random.
do $$
begin
  if current_setting('server_version_num')::int >= 180000 then
    create function new_id(p_now timestamptz) returns uuid language sql volatile as 'select uuidv7(p_now - clock_timestamp())';
  else
    create function new_id(p_now timestamptz) returns uuid language sql volatile as 'select gen_random_uuid()';
  end if;
end $$;

-- The smallest id that new_id() makes from p_at on; before PostgreSQL 18, where ids tell no time, the smallest of all.
do $$
begin
  if current_setting('server_version_num')::int >= 180000 then
    create function first_id(p_at timestamptz) returns uuid language sql immutable as $f$
      select (lpad(to_hex(greatest(0, floor(extract(epoch from p_at) * 1000)::bigint)), 12, '0') || repeat('0', 20))::uuid
    $f$;
  else
    create function first_id(p_at timestamptz) returns uuid language sql immutable as $f$
      select '00000000-0000-0000-0000-000000000000'::uuid
    $f$;
  end if;
end $$;

-- A domain's check is compiled once a session, a table's once for every statement that writes it: the hot tables have many of these.
create domain not_negative as bigint check (value >= 0);

create type entry_kind as enum (
  'grant', 'usage', 'expiry', 'rollover', 'refund', 'freeze', 'unfreeze', 'reversal', 'adjustment', 'debt', 'debt_repaid');
create type usage_outcome as enum ('captured', 'recorded', 'released', 'timed_out', 'unpriced');
create type authorization_state as enum ('open', 'timed_out', 'awaiting_price');

-- One row an account, also for an account without a wallet: what a verb need not look for, and what open work comes to.
create table account_state (
  account_id bigint primary key references accounts_account,
  stopped boolean not null default false,   -- a stop was not lifted yet (usage_throttle); it may have run out
  counted boolean not null default false,   -- a limit was asked about: there may be counters (usage_counter), and open work is counted here
  capped boolean not null default false,   -- a cap was asked about: spend is added up too (usage_spend)
  open_count not_negative not null default 0,
  -- What open and unpriced work is expected to cost us: part of every cost limit, and of no window yet.
  open_cost_nanos not_negative not null default 0
) with (fillfactor = 50);

create table wallet (
  account_id bigint not null references account_state,
  unit_id smallint not null references pricing_unit,
  balance bigint not null default 0,
  held not_negative not null default 0,
  debt not_negative not null default 0,
  seq bigint not null default 0,
  due_at timestamptz,   -- nothing expires, rolls over or is granted by itself before this; null means nothing ever does
  rollover_cap not_negative,   -- what the plan lets roll over in all (the largest number: everything); null: what each grant says
  primary key (account_id, unit_id),
  constraint wallet_never_overdrawn check (held <= balance),
  constraint wallet_no_debt_beside_free_credit check (debt = 0 or balance = held)
) with (fillfactor = 50);
create index wallet_due on wallet (due_at);   -- for the job that touches idle accounts; due_at changes seldom, so that other updates stay HOT

-- A grant: a lot of credits that arrived together. granted − remaining − frozen − clawed has been burnt, has expired or rolled over.
-- A rollover's root is the grant that was paid for; only a root is refunded.
create table credit_grant (
  account_id bigint not null,
  unit_id smallint not null,
  id bigint generated always as identity,
  source text not null,
  source_key text not null,
  root_id bigint,
  granted bigint not null,
  remaining not_negative not null,
  frozen not_negative not null default 0,
  clawed not_negative not null default 0,   -- what refunds took from this grant
  refunded not_negative not null default 0,   -- what refunds took for it: here, from its rollovers, as debt
  priority smallint not null,
  starts_at timestamptz not null,
  expires_at timestamptz not null default 'infinity',
  cash_nanos not_negative not null,
  fee_nanos not_negative not null,
  currency char(3) not null,
  rollover_expires_at timestamptz,   -- what is left at expires_at rolls over into a grant until then; null: it expires
  rollover_cap not_negative,   -- the wallet's rollovers together come to no more than this, unless the wallet says another; null: no cap
  rollover_priority smallint,
  closed boolean not null default false,
  primary key (account_id, id),
  foreign key (account_id, unit_id) references wallet,
  constraint grant_source_once unique (account_id, source, source_key),
  constraint grant_never_overdrawn check (remaining + frozen + clawed <= granted),
  constraint grant_closed_is_empty check (not closed or remaining + frozen = 0)
) with (fillfactor = 50);
-- "where not closed", never "where remaining > 0": the flag flips once, so that every other update stays in its page (HOT).
create index credit_grant_burn_order on credit_grant (account_id, unit_id, priority, expires_at, id) where not closed;

-- What a wallet is granted by itself: amount at the anchor and each so many months after it, counted from the anchor in UTC, so that a
-- 31st stays a 31st. The verbs grant what is due before anything else. Each grant lives until the next; what is left of it then rolls over
-- for so many periods (0: it expires). A new schedule takes the place of the old one.
create table credit_schedule (
  account_id bigint not null,
  unit_id smallint not null,
  source text not null check (source ~ '^[a-z_]{1,20}$'),
  source_key text not null check (length(source_key) between 1 and 150),
  amount bigint not null check (amount > 0),
  priority smallint not null,
  anchor_at timestamptz not null,
  months smallint not null check (months between 1 and 120),
  granted int not null default 0 check (granted >= 0),   -- how many periods have begun
  skipped int not null default 0 check (skipped >= 0),   -- how many before them it granted nothing for
  ends_at timestamptz,   -- nothing is granted from then on; null: without end
  rollover_periods smallint not null default 0 check (rollover_periods between 0 and 120),
  rollover_cap bigint check (rollover_cap >= 0),
  rollover_priority smallint not null default 0,
  actor text not null check (length(actor) between 1 and 150),   -- who set it, and why: its grants say the same
  reason text not null check (length(reason) between 1 and 500),
  stopped_at timestamptz,   -- it was about to grant what it should not: it grants nothing until staff let it go on (calendar.sql)
  stopped_because text,
  released_through timestamptz,   -- what is due by then, staff have said, is not too much
  primary key (account_id, unit_id),
  foreign key (account_id, unit_id) references wallet,
  check ((stopped_at is null) = (stopped_because is null))
);

-- The nth anniversary of an anchor, in UTC: its own day, or the last of a shorter month. billing/periods.py has the same.
create function anniversary(p_anchor timestamptz, p_months int) returns timestamptz language sql immutable as $$
  select (p_anchor at time zone 'UTC' + make_interval(months => p_months)) at time zone 'UTC'
$$;

-- When a schedule grants next; null where it has ended or was stopped.
create function next_grant(s credit_schedule) returns timestamptz language sql immutable as $$
  select d.at from (select anniversary(s.anchor_at, (s.skipped + s.granted) * s.months) as at) d
  where s.stopped_at is null and (s.ends_at is null or d.at < s.ends_at)
$$;

-- Work that was allowed and is not finished. Whatever ends it moves it into usage_record; a timed-out hold waits here 7 days for its capture.
create table open_authorization (
  account_id bigint not null,   -- no foreign key: only usage_authorize inserts, which has just read the account's row, and that row stays
  id uuid not null,
  key_hash uuid not null,
  fingerprint uuid not null,
  state authorization_state not null default 'open',
  unit_id smallint,
  hold bigint not null,   -- what was promised
  held not_negative not null,   -- what of it is still reserved in the wallet
  cost_nanos not_negative not null,
  remaining bigint[] not null,
  meters text[],   -- what remaining is of, beyond metering's fixed layers
  counts jsonb,   -- what of each meter this is; null means one message
  model_id int not null,
  feature_id int,
  api_key_id bigint,
  rate_card_id int not null,
  price_ids int[] not null,
  quantities bigint[] not null,
  user_ref text,
  session_ref text,
  run_ref text,
  created_at timestamptz not null,
  expires_at timestamptz not null,
  hard_expires_at timestamptz not null,
  closes_at timestamptz,   -- when the period of created_at is closed for good: what is captured later counts then; null: not known
  extended_to timestamptz,   -- the end that counts, once the hold was extended; expires_at stays what the key was answered with
  assumed_output_tokens bigint,   -- what metering put in for the answer; null means the client app said it
  captured bigint[],
  captured_at timestamptz,
  primary key (account_id, id),
  constraint open_authorization_key_once unique (account_id, key_hash),
  constraint open_authorization_begins_well check (held <= hold and created_at < expires_at and expires_at <= hard_expires_at)
) with (fillfactor = 70);

-- What may become of it: an end further out, or a wait for its price.
create function open_authorization_guard() returns trigger language plpgsql as $$
begin
  if (new.extended_to <= new.expires_at or new.extended_to > new.hard_expires_at)
    or (new.state = 'awaiting_price') <> (new.captured is not null and new.captured_at is not null) then
    raise exception 'authorization % cannot become %', old.id, new using errcode = 'check_violation';
  end if;
  return new;
end $$;
create trigger becomes_well before update on open_authorization for each row execute function open_authorization_guard();

-- Finished work, every outcome of it, so that a key is answered for ever.
create table usage_record (
  account_id bigint not null,
  id uuid not null,
  key_hash uuid not null,
  fingerprint uuid not null,
  event_at timestamptz not null,
  recorded_at timestamptz not null,
  counted_at timestamptz,   -- in which window and period it counts: null means at event_at; else that was closed for good already
  authorized_at timestamptz,
  expires_at timestamptz,
  cost_nanos not_negative,
  price_nanos not_negative,
  value_nanos not_negative,
  waived_nanos not_negative not null default 0,
  hold not_negative not null default 0,
  first_seq bigint,
  balance_after bigint,
  debt_after bigint,
  outcome usage_outcome not null,
  model_id int not null,
  feature_id int,
  rate_card_id int,
  api_key_id bigint,
  unit_id smallint,
  entries smallint not null default 0,
  price_ids int[],
  quantities bigint[] not null,
  seal uuid not null,   -- of all that the charge was made of (seal.sql)
  remaining bigint[],
  meters text[],
  counts jsonb,
  service_level text,   -- null means standard
  assumed_output_tokens bigint,
  user_ref text,
  session_ref text,
  run_ref text,
  primary key (account_id, id),
  constraint usage_record_key_once unique (account_id, key_hash),
  constraint usage_record_unpriced_has_no_price check ((outcome = 'unpriced') = (cost_nanos is null) and (cost_nanos is null) = (price_nanos is null) and (price_nanos is null) = (value_nanos is null))
);

create table ledger_entry (
  account_id bigint not null,
  unit_id smallint not null,
  seq not_negative not null,
  grant_id bigint,
  kind entry_kind not null,
  amount bigint not null,
  debt_delta bigint not null default 0,
  balance_after not_negative not null,
  debt_after not_negative not null,
  cash_nanos bigint not null default 0,
  fee_nanos bigint not null default 0,
  usage_id uuid,
  operation_id bigint,
  effective_at timestamptz not null,
  recorded_at timestamptz not null,
  primary key (account_id, unit_id, seq),
  constraint ledger_entry_moves_something check (amount <> 0 or debt_delta <> 0),
  constraint ledger_entry_moves_one_grant check ((grant_id is null) = (amount = 0)),
  constraint ledger_entry_has_one_cause check (num_nonnulls(usage_id, operation_id) = case when kind in ('expiry', 'rollover') then 0 else 1 end)
);

-- The rare verbs' keys, with who did it and why.
create table operation_key (
  account_id bigint not null references account_state,
  verb text not null check (verb in ('grant', 'adjust', 'reverse', 'refund', 'freeze', 'unfreeze', 'schedule', 'unschedule', 'restart', 'recap')),
  key_hash uuid not null,
  fingerprint uuid not null,
  id bigint generated always as identity,
  target uuid,
  actor text not null check (length(actor) between 1 and 150),
  reason text not null check (length(reason) between 1 and 500),
  created_at timestamptz not null,
  grant_id bigint,
  amount bigint not null,
  balance_after bigint not null,
  debt_after bigint not null,
  primary key (account_id, verb, key_hash),
  unique (account_id, id)
);
create unique index operation_key_reverses_once on operation_key (account_id, target) where verb = 'reverse';

-- What the rollups have not folded in yet; appended by the settle transaction, taken by analytics.
create table rollup_delta (
  account_id bigint not null,
  day date not null,
  model_id int not null,
  feature_id int,
  records int not null,
  tokens bigint not null,
  cost_nanos bigint not null,
  price_nanos bigint not null,
  value_nanos bigint not null,
  cash_nanos bigint not null,
  fee_nanos bigint not null
);

-- What calls whose answer was assumed came to; appended by the capture, taken by metering, which learns from it.
create table output_delta (
  account_id bigint not null,
  model_id int not null,
  feature_id int,
  quantities bigint[] not null
);

create function refuse_change() returns trigger language plpgsql as $$
begin
  raise exception '% on % refused: it is append-only', tg_op, tg_table_name using errcode = 'restrict_violation';
end $$;

create index usage_record_event_at on usage_record using brin (event_at);
create index usage_record_counted_at on usage_record (account_id, counted_at) where counted_at is not null;
create index usage_record_unpriced on usage_record (account_id, id) where outcome = 'unpriced';

-- The one later rating of an unpriced record, whose row never changes. waived_nanos: what came too late to be charged.
create table usage_rating (
  account_id bigint not null,
  usage_id uuid not null,
  rated_at timestamptz not null,
  cost_nanos not_negative not null,
  price_nanos not_negative not null,
  value_nanos not_negative not null,
  waived_nanos not_negative not null,
  first_seq bigint,
  balance_after bigint,
  debt_after bigint,
  rate_card_id int not null,
  unit_id smallint,
  entries smallint not null,
  price_ids int[] not null,
  seal uuid not null,
  primary key (account_id, usage_id),
  foreign key (account_id, usage_id) references usage_record
);
create index ledger_entry_recorded_at on ledger_entry using brin (recorded_at);

create trigger append_only before update or delete on usage_record for each row execute function refuse_change();
create trigger append_only before update or delete on ledger_entry for each row execute function refuse_change();
create trigger append_only before update or delete on usage_rating for each row execute function refuse_change();
create trigger append_only before update or delete on operation_key for each row execute function refuse_change();
create trigger never_deleted before delete on wallet for each row execute function refuse_change();
create trigger never_deleted before delete on account_state for each row execute function refuse_change();
create trigger never_deleted before delete on credit_grant for each row execute function refuse_change();
create trigger never_deleted before delete on credit_schedule for each row execute function refuse_change();
do $$
declare
  v_table text;
begin
  foreach v_table in array array['usage_record', 'usage_rating', 'ledger_entry', 'operation_key', 'wallet', 'account_state', 'credit_grant', 'credit_schedule', 'open_authorization'] loop
    execute format('create trigger never_truncated before truncate on %I for each statement execute function refuse_change()', v_table);
  end loop;
end $$;

-- A balance never changes without its entry. Looked at when the statement is done, which may have written both.
create function wallet_guard() returns trigger language plpgsql as $$
begin
  if new.account_id = old.account_id and new.unit_id = old.unit_id and new.seq >= old.seq and (
    exists (
      select from ledger_entry e
      where e.account_id = new.account_id and e.unit_id = new.unit_id and e.seq = new.seq
        and e.balance_after = new.balance and e.debt_after = new.debt)
    or (new.balance = old.balance and new.debt = old.debt and new.seq = old.seq)) then
    return null;
  end if;
  raise exception 'wallet % changed without a ledger entry', new.account_id using errcode = 'restrict_violation';
end $$;
-- By the columns that a statement names, not by a condition: a condition is read anew for every statement, and this table's are many.
create trigger has_entry after update of account_id, unit_id, balance, debt, seq on wallet for each row execute function wallet_guard();
create function wallet_starts_empty() returns trigger language plpgsql as $$
begin
  if (new.balance, new.held, new.debt, new.seq) is distinct from (0::bigint, 0::bigint, 0::bigint, 0::bigint) then
    raise exception 'a wallet starts empty' using errcode = 'restrict_violation';
  end if;
  return new;
end $$;
create trigger starts_empty before insert on wallet for each row execute function wallet_starts_empty();

-- What was granted, from where and for how much cash is history; only what is left of it changes.
create function credit_grant_guard() returns trigger language plpgsql as $$
begin
  raise exception 'the terms of grant % never change', old.id using errcode = 'restrict_violation';
end $$;
create trigger terms_never_change before update of
  account_id, unit_id, id, source, source_key, root_id, granted, priority, starts_at, expires_at, cash_nanos, fee_nanos, currency,
  rollover_expires_at, rollover_cap, rollover_priority
  on credit_grant for each row execute function credit_grant_guard();

-- What never changes is looked at once, when the grant comes in.
create function credit_grant_terms() returns trigger language plpgsql as $$
declare
  v_broken text := case
    when new.source !~ '^[a-z_]{1,20}$' or length(new.source_key) not between 1 and 200 then 'grant_has_a_source'
    when new.granted <= 0 then 'grant_is_of_something'
    when new.starts_at >= new.expires_at then 'grant_starts_before_it_expires'
    when new.expires_at >= new.rollover_expires_at then 'grant_rolls_over_forwards'
    when (new.rollover_priority is null) <> (new.rollover_expires_at is null)
      or (new.rollover_cap is not null and new.rollover_expires_at is null) then 'grant_rollover_terms'
    when new.root_id is not null and new.source <> 'rollover' then 'grant_root_is_what_is_refunded'
  end;
begin
  if v_broken is not null then
    raise exception 'a new grant breaks %', v_broken using errcode = 'check_violation', constraint = v_broken;
  end if;
  return new;
end $$;
create trigger has_terms before insert on credit_grant for each row execute function credit_grant_terms();

-- What refunds have taken back is never given again, and is never more than was granted; only the root of a rollover is refunded.
create function refund_guard() returns trigger language plpgsql as $$
declare
  v_broken text := case
    when tg_op = 'UPDATE' and (new.clawed < old.clawed or new.refunded < old.refunded) then 'grant_refunds_stay'
    when new.refunded > new.granted then 'grant_refunded_within_granted'
    when case when new.root_id is null then new.refunded < new.clawed else new.refunded <> 0 end then 'grant_root_is_what_is_refunded'
  end;
begin
  if v_broken is not null then
    raise exception 'a refund of grant % breaks %', new.id, v_broken using errcode = 'check_violation', constraint = v_broken;
  end if;
  return new;
end $$;
create trigger refunds_stay before insert or update of clawed, refunded on credit_grant for each row execute function refund_guard();

-- A schedule goes on one period at a time and may be given an end; other terms are another schedule. One that was stopped is put right
-- when it is let go on: which of its periods were granted is recounted.
create function credit_schedule_guard() returns trigger language plpgsql as $$
begin
  raise exception 'the terms of the schedule of account % never change', old.account_id using errcode = 'restrict_violation';
end $$;
create trigger terms_never_change before update on credit_schedule for each row
  when ((new.account_id, new.unit_id) is distinct from (old.account_id, old.unit_id) or (
        (new.source, new.source_key) = (old.source, old.source_key) and (
          ((new.granted not in (old.granted, old.granted + 1) or new.skipped <> old.skipped)
            and (old.stopped_at is null or new.stopped_at is not null))
          or (new.amount, new.priority, new.anchor_at, new.months, new.rollover_periods, new.rollover_cap, new.rollover_priority, new.actor, new.reason)
             is distinct from
             (old.amount, old.priority, old.anchor_at, old.months, old.rollover_periods, old.rollover_cap, old.rollover_priority, old.actor, old.reason))))
  execute function credit_schedule_guard();
