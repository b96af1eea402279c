-- What was asked for never changes, and what was decided stays decided.
create function approval_is_kept() returns trigger language plpgsql as $$
begin
  if tg_op = 'DELETE' then
    raise exception 'approvals are kept' using errcode = 'check_violation';
  end if;
  if old.state <> 'pending' then
    raise exception 'approval % was decided', old.id using errcode = 'check_violation';
  end if;
  if (new.kind, new.payload, new.before, new.after, new.reason, new.asked_by_id, new.asked_at, new.expires_at)
     is distinct from (old.kind, old.payload, old.before, old.after, old.reason, old.asked_by_id, old.asked_at, old.expires_at) then
    raise exception 'what was asked for never changes' using errcode = 'check_violation';
  end if;
  return new;
end $$;

create trigger approval_is_kept before update or delete on accounts_approval for each row execute function approval_is_kept();
