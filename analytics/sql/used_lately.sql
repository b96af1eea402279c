-- Which accounts used something since they were last looked at. The fold takes every new rollup_delta away, in a job: what it took
-- says whose they were, so that charging itself writes nothing for it.

create function note_used() returns trigger language plpgsql security definer set search_path = public, pg_temp as $$
begin
  insert into analytics_usedlately (account_id) select distinct account_id from gone order by account_id on conflict do nothing;
  return null;
end $$;

create trigger used_lately after delete on rollup_delta referencing old table as gone for each statement execute function note_used();
