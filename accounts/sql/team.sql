-- Who belongs to an account, and what it looks like: what must never be, and what a tenant may read.

-- An account that has an owner keeps one. The lock makes two owners who leave at once come one after the other: the second then sees that the
-- first has gone, because after the wait its own statement reads anew. Accounts that never had an owner (a client app opened them) need none.
create function membership_keeps_an_owner() returns trigger language plpgsql set search_path = ''
as $$
begin
    if old.role = 'owner' and (tg_op = 'DELETE' or new.role <> 'owner' or new.account_id <> old.account_id) then
        perform from public.accounts_account where id = old.account_id for no key update;
        if not exists (select from public.accounts_membership where account_id = old.account_id and role = 'owner') then
            raise exception 'account % would have no owner', old.account_id
                using errcode = 'check_violation', constraint = 'membership_keeps_an_owner', table = 'accounts_membership';
        end if;
    end if;
    return null;
end
$$;
create trigger membership_keeps_an_owner after update or delete on accounts_membership
    for each row execute function membership_keeps_an_owner();

-- A logo is small.
alter table accounts_brand add constraint brand_logo_is_small check (octet_length(logo) between 1 and 65536);

alter table accounts_invitation enable row level security;
create policy others on accounts_invitation using (current_user <> 'authenticated');
create policy tenant on accounts_invitation for select to authenticated using (account_id in (select visible_account_ids()));
grant select on accounts_invitation to authenticated;

alter table accounts_brand enable row level security;
create policy others on accounts_brand using (current_user <> 'authenticated');
create policy tenant on accounts_brand for select to authenticated using (account_id in (select visible_account_ids()));
grant select on accounts_brand to authenticated;

-- A tenant reads its account's keys, never a product's (their account_id is null), and no digest.
alter table accounts_apikey enable row level security;
create policy others on accounts_apikey using (current_user <> 'authenticated');
create policy tenant on accounts_apikey for select to authenticated using (account_id in (select visible_account_ids()));
grant select (id, product_id, account_id, name, prefix, scopes, created_at, created_by, expires_at, revoked_at, revoked_by, last_used_at)
    on accounts_apikey to authenticated;
