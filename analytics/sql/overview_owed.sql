-- The cash behind the credit that customers of a product (:product, null: all) have not used yet, disputed credit included, in US dollars as
-- nano-USD. To the last nano it is in analytics/sql/recognition.sql, which reads the ledger.
select coalesce(sum(div(g.cash_nanos::numeric * (g.remaining + g.frozen), g.granted)), 0)
from credit_grant g join accounts_account a on a.id = g.account_id
where not g.closed and g.cash_nanos > 0 and g.currency = 'usd' and (%(product)s::bigint is null or a.product_id = %(product)s)
