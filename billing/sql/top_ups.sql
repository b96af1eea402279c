-- Automatic top-ups: no two workers, whatever they believe, charge an account beyond its cap of a day; and what tenants may read.

create function top_up_within_cap() returns trigger language plpgsql as $$
declare
  v_rule billing_autotopup;
  v_spent bigint;
begin
  if tg_op = 'UPDATE' then
    if (new.account_id, new.pack_id, new.copies, new.amount_cents, new.credit_nanos, new.day)
       is distinct from (old.account_id, old.pack_id, old.copies, old.amount_cents, old.credit_nanos, old.day) then
      raise exception 'what a top-up charges never changes' using errcode = 'check_violation';
    end if;
    return new;
  end if;
  if new.state = 'skipped' then
    return new;
  end if;
  -- The lock makes a second worker wait until it sees the first one's top-up.
  select * into v_rule from billing_autotopup where account_id = new.account_id for update;
  if not found or not v_rule.enabled then
    raise exception 'account % has no automatic top-up', new.account_id using errcode = 'check_violation';
  end if;
  select coalesce(sum(amount_cents), 0) into v_spent
  from billing_topup where account_id = new.account_id and day = new.day and state in ('pending', 'paid', 'refunded');
  if v_spent + new.amount_cents > v_rule.daily_cap_cents then
    raise exception 'a top-up of % beside % would pass the cap of % a day', new.amount_cents, v_spent, v_rule.daily_cap_cents
      using errcode = 'check_violation';
  end if;
  return new;
end $$;

create trigger top_up_within_cap before insert or update on billing_topup for each row execute function top_up_within_cap();

alter table billing_autotopup enable row level security;
create policy others on billing_autotopup using (current_user <> 'authenticated');
create policy tenant on billing_autotopup for select to authenticated using (account_id in (select visible_account_ids()));
grant select on billing_autotopup to authenticated;

alter table billing_topup enable row level security;
create policy others on billing_topup using (current_user <> 'authenticated');
create policy tenant on billing_topup for select to authenticated using (account_id in (select visible_account_ids()));
grant select (id, account_id, pack_id, copies, amount_cents, credit_nanos, currency, day, state, reason, card, created_at, charged_at, finished_at)
  on billing_topup to authenticated;

-- A breaker is of one account and one card; customers read of it in the reason of the top-up that did not happen.
