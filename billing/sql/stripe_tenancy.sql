-- Row-level security on what customers' pages read of their invoices and payments (see accounts/sql/tenancy.sql).
alter table billing_stripeinvoice enable row level security;
create policy others on billing_stripeinvoice using (current_user <> 'authenticated');
create policy tenant on billing_stripeinvoice for select to authenticated using (account_id in (select visible_account_ids()));
grant select (id, account_id, number, status, description, currency, total, tax, paid, created_at, period_start, period_end,
    hosted_invoice_url, invoice_pdf) on billing_stripeinvoice to authenticated;

alter table billing_stripepayment enable row level security;
create policy others on billing_stripepayment using (current_user <> 'authenticated');
create policy tenant on billing_stripepayment for select to authenticated using (account_id in (select visible_account_ids()));
grant select (id, account_id, status, currency, paid, refunded, disputed, description, receipt_url, created_at)
    on billing_stripepayment to authenticated;
