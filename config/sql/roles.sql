-- The three roles of config/roles.py, where they are missing.
do $$ begin
    if not exists (select from pg_roles where rolname = 'tollgate_owner') then
        create role tollgate_owner nologin;
    end if;
    if not exists (select from pg_roles where rolname = 'tollgate_app') then
        create role tollgate_app login noinherit nosuperuser;
    end if;
    if not exists (select from pg_roles where rolname = 'authenticated') then
        create role authenticated nologin;
    end if;
end $$;
grant tollgate_owner to tollgate_app;
grant authenticated to tollgate_app;
