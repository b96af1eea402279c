-- What usage that given credit (:sources) paid for cost us, of entries of a product (:product) recorded from :since until before :until. Of a
-- use that several grants paid for, the share of the price that the gift paid, rounded down. A reversal brings no cost back. Nano-USD.
select coalesce(sum(div(coalesce(u.cost_nanos, r.cost_nanos)::numeric * -e.amount, coalesce(u.price_nanos, r.price_nanos))), 0)::bigint
from ledger_entry e
join credit_grant g on g.account_id = e.account_id and g.id = e.grant_id
left join credit_grant root on root.account_id = g.account_id and root.id = g.root_id
join usage_record u on u.account_id = e.account_id and u.id = e.usage_id
left join usage_rating r on r.account_id = e.account_id and r.usage_id = e.usage_id
join accounts_account a on a.id = e.account_id
where a.product_id = %(product)s and e.kind = 'usage' and e.recorded_at >= %(since)s and e.recorded_at < %(until)s
  and coalesce(root.source, g.source) = any (%(sources)s) and coalesce(u.price_nanos, r.price_nanos) > 0
