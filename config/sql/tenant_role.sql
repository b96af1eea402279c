-- The role of the tenant-facing reads, which migrations name. Made here when an administrator has not made it.
do $$ begin
    if not exists (select from pg_roles where rolname = 'authenticated') then
        create role authenticated nologin;
    end if;
exception when duplicate_object or unique_violation then
    null;  -- another migrate of the same server was faster
end $$;
