-- The app role's rights on everything that the current role (the owner) owns. LEDGER_TABLES is filled in by config/roles.py.
do $$ declare
    ledger oid[];
    thing record;
begin
    select coalesce(array_agg(oid), array[]::oid[]) into ledger
      from pg_class where relnamespace = 'public'::regnamespace and relname = any (LEDGER_TABLES);
    for thing in
        select c.oid, c.oid::regclass as name, c.relkind from pg_class c
         where c.relnamespace = 'public'::regnamespace and c.relkind in ('r', 'p', 'v', 'm', 'S')
           and pg_get_userbyid(c.relowner) = current_user
           and not exists (select from pg_depend where classid = 'pg_class'::regclass and objid = c.oid and deptype = 'e')
    loop
        execute format('revoke all on %s from public, tollgate_app', thing.name);
        if thing.relkind = 'S' then
            execute format('grant usage, select on sequence %s to tollgate_app', thing.name);
        elsif thing.oid = any (ledger) or thing.relkind in ('v', 'm') then
            execute format('grant select on %s to tollgate_app', thing.name);
        else
            execute format('grant select, insert, update, delete on %s to tollgate_app', thing.name);
        end if;
    end loop;
    for thing in
        select p.oid::regprocedure as name from pg_proc p
         where p.pronamespace = 'public'::regnamespace and pg_get_userbyid(p.proowner) = current_user
           and not exists (select from pg_depend where classid = 'pg_proc'::regclass and objid = p.oid and deptype = 'e')
    loop
        execute format('revoke execute on routine %s from public', thing.name);
        execute format('grant execute on routine %s to tollgate_app', thing.name);
    end loop;
end $$;
