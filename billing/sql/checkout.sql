-- Row-level security on what customers' pages read of their purchases (see tenancy.sql). What we ask of Stripe is no tenant's to read.
do $$
declare
  v_table text;
begin
  foreach v_table in array array['billing_checkout', 'billing_planchange'] loop
    execute format('alter table %I enable row level security', v_table);
    execute format('create policy others on %I using (current_user <> ''authenticated'')', v_table);
    execute format('create policy tenant on %I for select to authenticated using (account_id in (select visible_account_ids()))', v_table);
    execute format('grant select on %I to authenticated', v_table);
  end loop;
end $$;
