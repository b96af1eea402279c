-- What happened to money and plans, the newest first, up to :limit events before :before: the ledger's rare acts, what Stripe announced,
-- subscriptions that began or ended, and plans that were changed. :account null is all accounts, :kind '' all kinds. Each source is read no
-- further than the answer is long.
with chosen as (
  (select o.created_at as at, 'credit' as kind, o.verb as what, o.account_id, o.actor as who, o.reason as why,
     'billing_operation' as page, o.account_id || '-' || o.id as key
   from operation_key o
   where %(kind)s in ('', 'credit') and o.created_at < %(before)s and (%(account)s::bigint is null or o.account_id = %(account)s)
   order by o.created_at desc limit %(limit)s)
  union all
  (select e.received_at, 'stripe', e.type, coalesce(c.account_id, s.account_id, p.account_id, i.account_id), 'Stripe',
     concat_ws(', ', e.event_id, e.state, nullif(left(e.last_error, 200), '')), 'billing_stripeevent', e.id::text
   from billing_stripeevent e
     left join billing_stripecustomer c on c.id = e.object_id
     left join billing_stripesubscription s on s.id = e.object_id
     left join billing_stripepayment p on p.id = e.object_id
     left join billing_stripeinvoice i on i.id = e.object_id
   where %(kind)s in ('', 'stripe') and e.received_at < %(before)s
     and (%(account)s::bigint is null or coalesce(c.account_id, s.account_id, p.account_id, i.account_id) = %(account)s)
   order by e.received_at desc limit %(limit)s)
  union all
  (select s.started_at, 'plan', 'subscription began', s.account_id, case when s.stripe_id is null then '' else 'Stripe' end, n.name,
     'billing_subscription', s.id::text
   from billing_subscription s join pricing_planversion v on v.id = s.plan_version_id join pricing_plan n on n.id = v.plan_id
   where %(kind)s in ('', 'plan') and s.started_at < %(before)s and (%(account)s::bigint is null or s.account_id = %(account)s)
   order by s.started_at desc limit %(limit)s)
  union all
  (select s.ended_at, 'plan', 'subscription ended', s.account_id, case when s.stripe_id is null then '' else 'Stripe' end, n.name,
     'billing_subscription', s.id::text
   from billing_subscription s join pricing_planversion v on v.id = s.plan_version_id join pricing_plan n on n.id = v.plan_id
   where %(kind)s in ('', 'plan') and s.ended_at < %(before)s and (%(account)s::bigint is null or s.account_id = %(account)s)
   order by s.ended_at desc limit %(limit)s)
  union all
  (select c.created_at, 'plan', 'plan change asked for', c.account_id, c.actor, f.name || ' → ' || t.name, 'billing_planchange', c.id::text
   from billing_planchange c
     join pricing_planversion fv on fv.id = c.from_version_id join pricing_plan f on f.id = fv.plan_id
     join pricing_planversion tv on tv.id = c.to_version_id join pricing_plan t on t.id = tv.plan_id
   where %(kind)s in ('', 'plan') and c.created_at < %(before)s and (%(account)s::bigint is null or c.account_id = %(account)s)
   order by c.created_at desc limit %(limit)s)
)
select chosen.*, a.name, r.slug
from chosen left join accounts_account a on a.id = chosen.account_id left join pricing_product r on r.id = a.product_id
order by at desc, page, key
limit %(limit)s
