-- What a provider billed, and what comparing it found, stays as it was: another look is another row.
do $$
declare
  v_table text;
begin
  foreach v_table in array array['analytics_providerbill', 'analytics_billline', 'analytics_billcomparison', 'analytics_billvariance', 'analytics_billfinding'] loop
    execute format('create trigger append_only before update or delete on %I for each row execute function refuse_change()', v_table);
    execute format('create trigger never_truncated before truncate on %I for each statement execute function refuse_change()', v_table);
  end loop;
end $$;
