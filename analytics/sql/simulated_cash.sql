-- What :product was paid, in cents, and the cash behind credit that nobody has used yet, in nanos: as of now. Payments that bought credit by
-- itself (packs, top-ups) are told from those for plans by the grant that bears their id.
select
  coalesce(sum(p.paid) filter (where g.id is null), 0)::bigint as plans, coalesce(sum(p.paid) filter (where g.id is not null), 0)::bigint as credit,
  coalesce(sum(p.refunded), 0)::bigint as refunded, (
    select coalesce(sum(g.cash_nanos - coalesce(e.moved, 0)), 0)::bigint
    from credit_grant g
      join accounts_account a on a.id = g.account_id and a.product_id = %(product)s
      left join lateral (
        select sum(e.cash_nanos) as moved from ledger_entry e
        where e.account_id = g.account_id and e.grant_id = g.id and e.kind not in ('freeze', 'unfreeze')) e on true
    where g.cash_nanos > 0) as deferred
from billing_stripepayment p
  join accounts_account a on a.id = p.account_id and a.product_id = %(product)s
  left join credit_grant g on g.account_id = p.account_id and g.source = 'purchased' and g.source_key = p.id
