-- Ledger entries under one text key, for admin's pages.
create view browsable_entry as
  select account_id || '-' || unit_id || '-' || seq as id, account_id, unit_id, seq, kind::text as kind, amount, debt_delta, balance_after, debt_after,
    grant_id, usage_id, operation_id, effective_at, recorded_at
  from ledger_entry;
