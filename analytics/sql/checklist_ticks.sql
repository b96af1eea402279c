-- Who said what of a checklist, and when, stays; another tick is another row.
create trigger append_only before update or delete on analytics_checklisttick for each row execute function refuse_change();
create trigger never_truncated before truncate on analytics_checklisttick for each statement execute function refuse_change();
