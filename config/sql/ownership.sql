-- The owner role takes the database and what is in it already. What belongs to an extension stays the extension's.
grant tollgate_owner to current_user;
do $$ declare statement text; begin
    execute format('alter database %I owner to tollgate_owner', current_database());
    execute 'alter schema public owner to tollgate_owner';
    for statement in
        select format('alter %s %s owner to tollgate_owner',
                      case relkind when 'v' then 'view' when 'm' then 'materialized view' else 'table' end, oid::regclass)
          from pg_class c
         where relnamespace = 'public'::regnamespace and relkind in ('r', 'p', 'v', 'm')
           and not exists (select from pg_depend where classid = 'pg_class'::regclass and objid = c.oid and deptype = 'e')
        union all
        select format('alter routine %s owner to tollgate_owner', oid::regprocedure)
          from pg_proc p
         where pronamespace = 'public'::regnamespace
           and not exists (select from pg_depend where classid = 'pg_proc'::regclass and objid = p.oid and deptype = 'e')
    loop
        execute statement;
    end loop;
end $$;
