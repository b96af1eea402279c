-- Row-level security, the second wall between tenants (the first is that querysets are scoped in code).
--
-- A tenant-facing read runs as the role "authenticated" with PostgREST's settings (accounts/tenancy.py). It sees the rows of the accounts
-- that visible_account_ids() returns, and nothing else. Every other role sees what it was granted: policies are enabled, not forced, and
-- "current_user <> 'authenticated'" lets the program's own role pass.
--
-- A tenant's table joins in with three lines:
--     alter table t enable row level security;
--     create policy others on t using (current_user <> 'authenticated');
--     create policy tenant on t for select to authenticated using (account_id in (select visible_account_ids()));
-- and with a "grant select" of the columns that pages need.

do $$
begin
    if not exists (select from pg_roles where rolname = 'authenticated') then
        create role authenticated nologin;
        grant authenticated to current_user;
    end if;
exception
    when duplicate_object or unique_violation then
        null;  -- another migration of the same server was faster
    when insufficient_privilege then
        raise exception 'the role "authenticated" does not exist and "%" may not create it', current_user
            using hint = 'Let an administrator of the server run what "manage.py db roles" prints, then migrate again.';
end
$$;

-- The claims of this transaction, read three ways. Never an error: claims that cannot be understood are nobody's.
--
--   request.jwt.claims     {"sub": "<user's uuid>"}        a person: the accounts that this active user is a member of
--                          {"account_id": 42}              that account; only where there is no "sub"
--   request.jwt.claim.sub  <user's uuid>                   PostgREST's older name; read only where request.jwt.claims is empty
--
-- Longer claims than 4,096 bytes are not parsed, so that no nesting depth can overflow the parser's stack. Needs PostgreSQL 16
-- (pg_input_is_valid).
create function claims() returns jsonb language sql stable parallel safe set search_path = ''
as $$
    select case
        when coalesce(setting, '') = '' then jsonb_build_object('sub', current_setting('request.jwt.claim.sub', true))
        when octet_length(setting) <= 4096 and pg_input_is_valid(setting, 'jsonb') and jsonb_typeof(setting::jsonb) = 'object' then setting::jsonb
        else '{}'
    end
    from current_setting('request.jwt.claims', true) setting
$$;

-- The person, if the claims name one.
create function claimed_user_id() returns uuid language sql stable parallel safe set search_path = ''
as $$
    select case when jsonb_typeof(claim -> 'sub') = 'string' and pg_input_is_valid(claim ->> 'sub', 'uuid') then (claim ->> 'sub')::uuid end
    from public.claims() claim
$$;

-- The accounts that the claims allow. Owner's rights: the caller may read neither users nor other people's memberships.
create function visible_account_ids() returns setof bigint
language plpgsql stable security definer parallel safe
set search_path = ''
as $$
declare
    claims jsonb := public.claims();
begin
    if claims ? 'sub' then
        return query
            select membership.account_id
              from public.accounts_membership membership
              join public.accounts_user person on person.id = membership.user_id
             where membership.user_id = public.claimed_user_id() and person.is_active;
    elsif jsonb_typeof(claims -> 'account_id') = 'number' and pg_input_is_valid(claims ->> 'account_id', 'bigint') then
        return next (claims ->> 'account_id')::bigint;
    end if;
end
$$;

revoke execute on function claims(), claimed_user_id(), visible_account_ids() from public;
grant execute on function claims(), claimed_user_id(), visible_account_ids() to authenticated;

alter table accounts_account enable row level security;
create policy others on accounts_account using (current_user <> 'authenticated');
create policy tenant on accounts_account for select to authenticated using (id in (select visible_account_ids()));

alter table accounts_membership enable row level security;
create policy others on accounts_membership using (current_user <> 'authenticated');
create policy tenant on accounts_membership for select to authenticated using (account_id in (select visible_account_ids()));

grant select (id, product_id, public_id, external_id, name, kind, billing_email, time_zone, rate_card, created_at, closed_at)
    on accounts_account to authenticated;
grant select (id, account_id, user_id, role, created_at) on accounts_membership to authenticated;
