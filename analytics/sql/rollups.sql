-- What was used, charged and paid for, added up: by day, model and feature, and by account and day.
--
-- The verbs of the ledger append one rollup_delta per charge and per reversal, in the charge's own transaction. fold_rollups() takes
-- deltas away and adds them here. What is true at any moment is folded + not yet folded: the two live_… views, read in one statement.
-- Cost and value are nano-USD, price is nanos of the wallet's unit, cash and fee are nanos of the grants' currency. Days are UTC.

create table rollup_model (
  product_id bigint not null references pricing_product,
  day date not null,
  model_id int not null,
  feature_id int not null,   -- 0: no feature
  records bigint not null,
  tokens bigint not null,
  cost_nanos bigint not null,
  price_nanos bigint not null,
  value_nanos bigint not null,
  cash_nanos bigint not null,
  fee_nanos bigint not null,
  primary key (product_id, day, model_id, feature_id)
) with (fillfactor = 70);

create table rollup_account (
  account_id bigint not null references accounts_account,
  day date not null,
  records bigint not null,
  tokens bigint not null,
  cost_nanos bigint not null,
  price_nanos bigint not null,
  value_nanos bigint not null,
  cash_nanos bigint not null,
  fee_nanos bigint not null,
  primary key (account_id, day)
) with (fillfactor = 70);
create index rollup_account_day on rollup_account using brin (day);

-- One row: whoever folds or rebuilds locks it, and says when.
create table rollup_state (
  single boolean primary key default true check (single),
  folded_at timestamptz not null
);
insert into rollup_state (folded_at) values (clock_timestamp());

-- Deltas come and go all day: vacuum by count, not by a share of a table that is empty on average.
alter table rollup_delta set (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 20000);

create view live_rollup_model as
  select product_id, day, model_id, feature_id, records, tokens, cost_nanos, price_nanos, value_nanos, cash_nanos, fee_nanos
  from rollup_model
  union all
  select a.product_id, d.day, d.model_id, coalesce(d.feature_id, 0), d.records, d.tokens, d.cost_nanos, d.price_nanos, d.value_nanos,
    d.cash_nanos, d.fee_nanos
  from rollup_delta d join accounts_account a on a.id = d.account_id;

create view live_rollup_account as
  select account_id, day, records, tokens, cost_nanos, price_nanos, value_nanos, cash_nanos, fee_nanos
  from rollup_account
  union all
  select account_id, day, records, tokens, cost_nanos, price_nanos, value_nanos, cash_nanos, fee_nanos
  from rollup_delta;

-- Folds up to p_limit deltas and returns how many. Two folds at once follow each other: the second locks when the first has committed.
create function fold_rollups(p_limit int) returns int language plpgsql security definer set search_path = public, pg_temp as $$
declare
  v_folded int;
begin
  update rollup_state set folded_at = clock_timestamp();
  with taken as (
    delete from rollup_delta where ctid = any (array(select ctid from rollup_delta limit p_limit)) returning *
  ), models as (
    insert into rollup_model as r
    select a.product_id, t.day, t.model_id, coalesce(t.feature_id, 0), sum(t.records), sum(t.tokens), sum(t.cost_nanos), sum(t.price_nanos),
      sum(t.value_nanos), sum(t.cash_nanos), sum(t.fee_nanos)
    from taken t join accounts_account a on a.id = t.account_id
    group by 1, 2, 3, 4
    on conflict (product_id, day, model_id, feature_id) do update set
      records = r.records + excluded.records, tokens = r.tokens + excluded.tokens, cost_nanos = r.cost_nanos + excluded.cost_nanos,
      price_nanos = r.price_nanos + excluded.price_nanos, value_nanos = r.value_nanos + excluded.value_nanos,
      cash_nanos = r.cash_nanos + excluded.cash_nanos, fee_nanos = r.fee_nanos + excluded.fee_nanos
  ), accounts as (
    insert into rollup_account as r
    select t.account_id, t.day, sum(t.records), sum(t.tokens), sum(t.cost_nanos), sum(t.price_nanos), sum(t.value_nanos), sum(t.cash_nanos),
      sum(t.fee_nanos)
    from taken t
    group by 1, 2
    on conflict (account_id, day) do update set
      records = r.records + excluded.records, tokens = r.tokens + excluded.tokens, cost_nanos = r.cost_nanos + excluded.cost_nanos,
      price_nanos = r.price_nanos + excluded.price_nanos, value_nanos = r.value_nanos + excluded.value_nanos,
      cash_nanos = r.cash_nanos + excluded.cash_nanos, fee_nanos = r.fee_nanos + excluded.fee_nanos
  )
  select count(*) into v_folded from taken;
  return v_folded;
end $$;

-- The same figures counted again from what never changes: usage records, their entries, and reversals. p_tokens: the positions of
-- usage_record.quantities that count tokens.
create function recount_usage(p_tokens int[])
returns table (
  product_id bigint, account_id bigint, day date, model_id int, feature_id int, records bigint, tokens bigint, cost_nanos bigint,
  price_nanos bigint, value_nanos bigint, cash_nanos bigint, fee_nanos bigint)
language sql stable as $$
  with charged as (
    select u.account_id, u.id, (u.event_at at time zone 'UTC')::date as day, u.model_id, coalesce(u.feature_id, 0) as feature_id,
      coalesce(u.cost_nanos, r.cost_nanos) as cost_nanos, coalesce(u.price_nanos, r.price_nanos) as price_nanos,
      coalesce(u.value_nanos, r.value_nanos) as value_nanos,
      (select coalesce(sum(q), 0) from unnest(u.quantities) with ordinality as t (q, i) where i = any (p_tokens)) as tokens
    from usage_record u left join usage_rating r on r.account_id = u.account_id and r.usage_id = u.id
    where u.outcome in ('captured', 'recorded') or r.usage_id is not null
  ), reversed as (
    select c.*, o.id as operation_id from operation_key o join charged c on c.account_id = o.account_id and c.id = o.target where o.verb = 'reverse'
  ), parts as (
    select account_id, day, model_id, feature_id, 1 as records, tokens, cost_nanos, price_nanos, value_nanos, 0::bigint as cash_nanos, 0::bigint as fee_nanos
    from charged
    union all
    select account_id, day, model_id, feature_id, 0, 0, 0, -price_nanos, -value_nanos, 0, 0 from reversed
    union all
    select c.account_id, c.day, c.model_id, c.feature_id, 0, 0, 0, 0, 0, e.cash_nanos, e.fee_nanos
    from ledger_entry e join charged c on c.account_id = e.account_id and c.id = e.usage_id
    where e.kind = 'usage'
    union all
    select r.account_id, r.day, r.model_id, r.feature_id, 0, 0, 0, 0, 0, e.cash_nanos, e.fee_nanos
    from ledger_entry e join reversed r on r.account_id = e.account_id and r.operation_id = e.operation_id
    where e.kind = 'reversal'
  )
  select a.product_id, p.account_id, p.day, p.model_id, p.feature_id, sum(p.records)::bigint, sum(p.tokens)::bigint, sum(p.cost_nanos)::bigint,
    sum(p.price_nanos)::bigint, sum(p.value_nanos)::bigint, sum(p.cash_nanos)::bigint, sum(p.fee_nanos)::bigint
  from parts p join accounts_account a on a.id = p.account_id
  group by 1, 2, 3, 4, 5
$$;

-- Replaces the rollups by a recount and returns how many rows were changed, added or removed. Charges go on meanwhile: a charge and
-- its delta are one transaction, so the one snapshot of the statement either counts the record and takes its delta, or neither.
create function rebuild_rollups(p_tokens int[]) returns int language plpgsql security definer set search_path = public, pg_temp as $$
declare
  v_changed int;
begin
  update rollup_state set folded_at = clock_timestamp();
  with recount as materialized (
    select * from recount_usage(p_tokens)
  ), models as (
    select product_id, day, model_id, feature_id, sum(records)::bigint as records, sum(tokens)::bigint as tokens, sum(cost_nanos)::bigint as cost_nanos,
      sum(price_nanos)::bigint as price_nanos, sum(value_nanos)::bigint as value_nanos, sum(cash_nanos)::bigint as cash_nanos,
      sum(fee_nanos)::bigint as fee_nanos
    from recount group by 1, 2, 3, 4
  ), accounts as (
    select account_id, day, sum(records)::bigint as records, sum(tokens)::bigint as tokens, sum(cost_nanos)::bigint as cost_nanos,
      sum(price_nanos)::bigint as price_nanos, sum(value_nanos)::bigint as value_nanos, sum(cash_nanos)::bigint as cash_nanos,
      sum(fee_nanos)::bigint as fee_nanos
    from recount group by 1, 2
  ), taken as (
    delete from rollup_delta
  ), models_gone as (
    delete from rollup_model r where not exists (
      select from models m where (m.product_id, m.day, m.model_id, m.feature_id) = (r.product_id, r.day, r.model_id, r.feature_id))
    returning 1
  ), accounts_gone as (
    delete from rollup_account r where not exists (select from accounts a where (a.account_id, a.day) = (r.account_id, r.day)) returning 1
  ), models_put as (
    insert into rollup_model as r select * from models
    on conflict (product_id, day, model_id, feature_id) do update set
      records = excluded.records, tokens = excluded.tokens, cost_nanos = excluded.cost_nanos, price_nanos = excluded.price_nanos,
      value_nanos = excluded.value_nanos, cash_nanos = excluded.cash_nanos, fee_nanos = excluded.fee_nanos
    where r is distinct from excluded
    returning 1
  ), accounts_put as (
    insert into rollup_account as r select * from accounts
    on conflict (account_id, day) do update set
      records = excluded.records, tokens = excluded.tokens, cost_nanos = excluded.cost_nanos, price_nanos = excluded.price_nanos,
      value_nanos = excluded.value_nanos, cash_nanos = excluded.cash_nanos, fee_nanos = excluded.fee_nanos
    where r is distinct from excluded
    returning 1
  )
  select (select count(*) from models_gone) + (select count(*) from accounts_gone) + (select count(*) from models_put)
    + (select count(*) from accounts_put) into v_changed;
  return v_changed;
end $$;
