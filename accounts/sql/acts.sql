-- The audit log is append-only. Its one other change is to forget a person: their address gives way to “forgotten-…” in every text of a
-- row, and nothing else of the row may change with it. Both words are set by audit_forget, below.
create function audit_is_kept() returns trigger language plpgsql as $$
declare
  v_address text := trim(both '"' from to_jsonb(coalesce(current_setting('tollgate.forget', true), ''))::text);
  v_forgotten text := coalesce(current_setting('tollgate.forgotten', true), '');
begin
  if tg_op = 'UPDATE' and v_address like '%@%' and v_forgotten ~ '^forgotten-[0-9a-f-]{36}$'
     and to_jsonb(new) = replace(to_jsonb(old)::text, v_address, v_forgotten)::jsonb then
    return new;
  end if;
  raise exception 'the audit log is append-only' using errcode = 'check_violation';
end $$;

create trigger audit_is_kept before update or delete on django_admin_log for each row execute function audit_is_kept();
create trigger audit_is_never_truncated before truncate on django_admin_log for each statement execute function audit_is_kept();
create trigger audit_is_kept before update or delete on accounts_auditevent for each row execute function audit_is_kept();
create trigger audit_is_never_truncated before truncate on accounts_auditevent for each statement execute function audit_is_kept();

create function audit_forget(p_address text, p_forgotten text) returns void language plpgsql as $$
declare
  v_quoted text := trim(both '"' from to_jsonb(p_address)::text);
begin
  perform set_config('tollgate.forget', p_address, true), set_config('tollgate.forgotten', p_forgotten, true);
  update django_admin_log
     set object_repr = replace(object_repr, p_address, p_forgotten), change_message = replace(change_message, p_address, p_forgotten)
   where position(p_address in object_repr) > 0 or position(p_address in change_message) > 0;
  update accounts_auditevent
     set reason = replace(reason, p_address, p_forgotten), before = replace(before::text, v_quoted, p_forgotten)::jsonb,
         after = replace(after::text, v_quoted, p_forgotten)::jsonb
   where position(p_address in reason) > 0 or position(v_quoted in before::text) > 0 or position(v_quoted in after::text) > 0;
  perform set_config('tollgate.forget', '', true), set_config('tollgate.forgotten', '', true);
end $$;

-- The same asked for twice at the same instant waits once. One that ran out does not stand in the way of the next.
alter table accounts_approval add constraint approval_asked_once
  exclude using gist (kind with =, mark with =, tstzrange(asked_at, expires_at) with &&) where (state = 'pending' and mark <> '');
