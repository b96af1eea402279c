-- Row-level security on what customers' pages read of the ledger (see accounts/sql/tenancy.sql). "authenticated" gets the parents only:
-- no partition, no verb, and no column that says what a call cost us (or would let it be worked out: the seal), what the payment provider took, or who of staff did what and why.
do $$
declare
  v_table text;
  v_columns text;
begin
  foreach v_table in array array['wallet', 'credit_grant', 'credit_schedule', 'open_authorization', 'usage_record', 'usage_rating', 'ledger_entry', 'usage_spend', 'billing_subscription'] loop
    execute format('alter table %I enable row level security', v_table);
    execute format('create policy others on %I using (current_user <> ''authenticated'')', v_table);
    execute format('create policy tenant on %I for select to authenticated using (account_id in (select visible_account_ids()))', v_table);
    select string_agg(quote_ident(attname), ', ') into v_columns
    from pg_attribute
    where attrelid = v_table::regclass and attnum > 0 and not attisdropped and attname not in ('cost_nanos', 'fee_nanos', 'seal', 'actor', 'reason', 'stopped_because');
    execute format('grant select (%s) on %I to authenticated', v_columns, v_table);
  end loop;
end $$;

-- The chat document's own check (R-113, R-341): "select * from user_balances" as a signed-in user shows that user's rows alone, also
-- where others belong to the same team.
create view user_balances with (security_invoker = true) as
  select m.user_id, w.account_id, w.balance::numeric / 1000000000 as balance, u.code as currency
  from wallet w
  join accounts_membership m on m.account_id = w.account_id
  join pricing_unit u on u.id = w.unit_id
  where m.user_id = claimed_user_id();
grant select on user_balances to authenticated;
grant select on pricing_unit to authenticated;
