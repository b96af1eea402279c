-- What every subscription stood at, from when until when: a row ends and another begins whenever something changes that its price depends
-- on (plan, seats, status, discount, when it lapses). The subscription's own row says only how it stands now.
--
-- Written by a trigger, in the transaction of the change: whoever changes a subscription, its history is whole. A subscription begins and ends
-- when it says so, however late we learnt of it; what changes in between changed when it was written, by app_now().

create function note_subscription_term() returns trigger language plpgsql security definer set search_path = public, pg_temp as $$
declare
  v_now analytics_subscriptionterm;
  v_open analytics_subscriptionterm;
begin
  if new.status = 'canceled' then
    delete from analytics_subscriptionterm where subscription_id = new.id and from_at >= new.ended_at;
    update analytics_subscriptionterm set until_at = new.ended_at
    where subscription_id = new.id and (until_at is null or until_at > new.ended_at);
    return null;
  end if;
  select * into v_open from analytics_subscriptionterm where subscription_id = new.id and until_at is null;
  v_now := v_open;
  v_now.account_id := new.account_id;
  v_now.subscription_id := new.id;
  v_now.plan_version_id := new.plan_version_id;
  v_now.status := new.status;
  v_now.seats := new.seats;
  v_now.lapses_at := coalesce(new.grace_ends_at, new.trial_ends_at);
  select s.discount_ppm, s.discount_cents, s.discount_ends_at into v_now.discount_ppm, v_now.discount_cents, v_now.discount_ends_at
  from billing_stripesubscription s where s.id = new.stripe_id;
  v_now.discount_ppm := coalesce(v_now.discount_ppm, 0);
  v_now.discount_cents := coalesce(v_now.discount_cents, 0);
  if v_open.id is not null then
    if v_now is not distinct from v_open then
      return null;
    end if;
    v_now.from_at := greatest(app_now(), v_open.from_at);
    if v_now.from_at = v_open.from_at then
      delete from analytics_subscriptionterm where id = v_open.id;
    else
      update analytics_subscriptionterm set until_at = v_now.from_at where id = v_open.id;
    end if;
  elsif exists (select from analytics_subscriptionterm where subscription_id = new.id) then
    v_now.from_at := app_now();
  else
    v_now.from_at := new.started_at;
  end if;
  insert into analytics_subscriptionterm
    (account_id, subscription_id, plan_version_id, status, seats, discount_ppm, discount_cents, discount_ends_at, lapses_at, from_at)
  values (v_now.account_id, v_now.subscription_id, v_now.plan_version_id, v_now.status, v_now.seats, v_now.discount_ppm,
    v_now.discount_cents, v_now.discount_ends_at, v_now.lapses_at, v_now.from_at);
  return null;
end $$;

create trigger subscription_term after insert or update on billing_subscription for each row execute function note_subscription_term();

-- Subscriptions from before the trigger: as they stand now, from beginning to end.
insert into analytics_subscriptionterm
  (account_id, subscription_id, plan_version_id, status, seats, discount_ppm, discount_cents, discount_ends_at, lapses_at, from_at, until_at)
select s.account_id, s.id, s.plan_version_id, case s.status when 'canceled' then 'active' else s.status end, s.seats,
  coalesce(p.discount_ppm, 0), coalesce(p.discount_cents, 0), p.discount_ends_at, coalesce(s.grace_ends_at, s.trial_ends_at), s.started_at, s.ended_at
from billing_subscription s left join billing_stripesubscription p on p.id = s.stripe_id
where s.ended_at is null or s.ended_at > s.started_at;

-- What is paid a month for each stretch of time, nano-USD: docs/decisions/0065-mrr.md. Infinity where it has no end yet.
create view subscription_revenue as
  select t.id as term_id, a.product_id, t.account_id, t.subscription_id, t.plan_version_id, t.status, t.seats, p.from_at, p.until_at,
    p.mrr_nanos::bigint as mrr_nanos
  from analytics_subscriptionterm t
  join billing_subscription s on s.id = t.subscription_id
  join pricing_planversion v on v.id = t.plan_version_id
  join accounts_account a on a.id = t.account_id
  cross join lateral (
    select coalesce(v.price_cents, 0)::numeric * 10000000 * case when v.per_seat then t.seats else 1 end as whole,
      case v.interval when 'year' then 12 else 1 end as months,
      least(coalesce(t.until_at, 'infinity'), coalesce(t.lapses_at, 'infinity')) as ends
  ) c
  cross join lateral (values
    (t.from_at, least(c.ends, coalesce(t.discount_ends_at, 'infinity')),
      div(greatest(floor(c.whole * (1000000 - t.discount_ppm) / 1000000) - t.discount_cents::numeric * 10000000, 0), c.months)),
    (case when t.discount_ends_at is null then 'infinity' else greatest(t.from_at, t.discount_ends_at) end, c.ends, div(c.whole, c.months))
  ) p (from_at, until_at, mrr_nanos)
  where t.status in ('active', 'past_due') and v.currency = 'usd' and p.until_at > p.from_at and p.mrr_nanos > 0
    and (s.stripe_id is not null or exists (select from billing_agreement g where g.plan_version_id = v.id));

-- Each change of what an account pays a month, and what it is called. Changes of one instant are one.
create view revenue_step as
  select product_id, account_id, at, after - delta as before, after, delta,
    case
      when after = delta then case when at = first_at then 'new' else 'reactivated' end
      when after = 0 then 'churned'
      when delta > 0 then 'expansion'
      else 'contraction'
    end as kind
  from (
    select product_id, account_id, at, delta, sum(delta) over (partition by product_id, account_id order by at)::bigint as after,
      min(at) over (partition by product_id, account_id) as first_at
    from (
      select product_id, account_id, at, sum(delta)::bigint as delta
      from (
        select product_id, account_id, from_at as at, mrr_nanos as delta from subscription_revenue
        union all
        select product_id, account_id, until_at, -mrr_nanos from subscription_revenue where until_at < 'infinity'
      ) both_ends
      group by 1, 2, 3
      having sum(delta) <> 0
    ) steps
  ) standing;
