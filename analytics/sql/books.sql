-- The books: where the cash went that was paid for credit, by day. Folded from the ledger's own entries, so that charging writes nothing
-- more: a wallet's entries are numbered without gaps, so the number up to which they were taken (book_wallet) says which are new, whatever
-- commits meanwhile. True at any moment is folded + not yet folded: the live_book_… views. Days are UTC, of when the ledger recorded it: a
-- day that is over never changes, whatever is reported late. Amounts are nanos of the grants' currency.
--
-- Lines: received (what was paid for a grant, with the payment's fee); usage, reversal (comes back, negative), debt_repaid, expiry,
-- adjustment (staff took credits away): the cash behind credits that left; refund: of credits that were taken back for money that went back;
-- returned: that money; freeze, unfreeze (negative): of disputed credits. Rollovers move nothing: their cash stays deferred. Beside these stands
-- promotion, which is no cash: the list value (as cash_nanos) and our cost (as fee_nanos) of what was used on credits that nobody paid for.

create table book_wallet (
  account_id bigint not null,
  unit_id smallint not null,
  seq bigint not null,
  primary key (account_id, unit_id)
) with (fillfactor = 70);

create table book_account (
  account_id bigint not null references accounts_account,
  day date not null,
  line text not null,
  cash_nanos bigint not null,
  fee_nanos bigint not null,
  primary key (account_id, day, line)
) with (fillfactor = 70);
create index book_account_day on book_account using brin (day);

create table book_product (
  product_id bigint not null references pricing_product,
  day date not null,
  line text not null,
  cash_nanos bigint not null,
  fee_nanos bigint not null,
  primary key (product_id, day, line)
) with (fillfactor = 70);

-- What credits were burnt for usage, by where they came from (their root grant's source, and what was bought with it) and by who used them; days
-- are those of the event, as in the rollups. A record that burnt several grants is split by what each gave; what was owed is source 'debt'.
-- Records are counted where their first credit came from. Usage that was charged nothing is in neither.
create table book_origin (
  product_id bigint not null references pricing_product,
  day date not null,
  source text not null,
  label text not null,
  records bigint not null,
  value_nanos bigint not null,
  cost_nanos bigint not null,
  cash_nanos bigint not null,
  fee_nanos bigint not null,
  primary key (product_id, day, source, label)
) with (fillfactor = 70);

create table book_user (
  account_id bigint not null references accounts_account,
  day date not null,
  user_ref text not null,   -- as the client app names its users; empty: it named none
  records bigint not null,
  value_nanos bigint not null,
  cost_nanos bigint not null,
  cash_nanos bigint not null,
  fee_nanos bigint not null,
  primary key (account_id, day, user_ref)
) with (fillfactor = 70);
create index book_user_day on book_user using brin (day);

-- The entries not yet folded; p_all: all of them; p_after: those recorded then or later, on the same day, folded or not.
create function book_moves(p_all boolean, p_after timestamptz) returns setof ledger_entry language sql stable as $$
  select e.* from ledger_entry e
  where p_after is not null and e.recorded_at >= p_after and e.recorded_at < date_trunc('day', p_after, 'UTC') + interval '1 day'
  union all
  select e.*
  from wallet w
    left join book_wallet b on b.account_id = w.account_id and b.unit_id = w.unit_id
    cross join lateral (
      select * from ledger_entry e
      where e.account_id = w.account_id and e.unit_id = w.unit_id and e.seq > case when p_all then 0 else coalesce(b.seq, 0) end
      offset 0) e   -- by the key, a wallet at a time: never the whole table
  where p_after is null and (p_all or w.seq > coalesce(b.seq, 0))
$$;

-- What each new entry is of its usage record: cost and list value in proportion to what it burnt or made owe, floors that sum to the whole.
create function book_parts(p_all boolean, p_after timestamptz default null)
returns table (
  account_id bigint, product_id bigint, booked date, day date, grant_id bigint, user_ref text, records int, value_nanos bigint, cost_nanos bigint,
  cash_nanos bigint, fee_nanos bigint)
language sql stable as $$
  with moved as materialized (
    select * from book_moves(p_all, p_after) m where m.kind in ('usage', 'debt', 'reversal')
  ), part as (
    select m.account_id, m.seq, m.recorded_at, m.grant_id, m.usage_id, 1 as sign, m.debt_delta - m.amount as portion, m.cash_nanos, m.fee_nanos
    from moved m where m.kind <> 'reversal' and m.usage_id is not null
    union all
    select m.account_id, m.seq, m.recorded_at, m.grant_id, o.target, -1, m.amount - m.debt_delta, m.cash_nanos, m.fee_nanos
    from moved m join operation_key o on o.account_id = m.account_id and o.id = m.operation_id
    where m.kind = 'reversal'
  ), placed as (
    select p.*, isum(p.portion) over (partition by p.account_id, p.usage_id, p.sign order by p.seq) as upto from part p
  )
  select p.account_id, a.product_id, (p.recorded_at at time zone 'UTC')::date, (u.event_at at time zone 'UTC')::date, p.grant_id, coalesce(u.user_ref, ''),
    (p.sign = 1 and p.upto = p.portion)::int, p.sign * (share(x.value, p.upto, x.price) - share(x.value, p.upto - p.portion, x.price)),
    case when p.sign = 1 then share(x.cost, p.upto, x.price) - share(x.cost, p.upto - p.portion, x.price) else 0 end, p.cash_nanos, p.fee_nanos
  from placed p
    join accounts_account a on a.id = p.account_id
    join usage_record u on u.account_id = p.account_id and u.id = p.usage_id
    left join usage_rating r on r.account_id = u.account_id and r.usage_id = u.id
    cross join lateral (
      select coalesce(u.price_nanos, r.price_nanos)::bigint as price, coalesce(u.value_nanos, r.value_nanos)::bigint as value,
        coalesce(u.cost_nanos, r.cost_nanos)::bigint as cost) x
$$;

create function book_lines(p_all boolean, p_after timestamptz default null)
returns table (account_id bigint, product_id bigint, day date, line text, cash_nanos bigint, fee_nanos bigint) language sql stable as $$
  with moved as materialized (
    select * from book_moves(p_all, p_after)
  ), line as (
    select m.account_id, (m.recorded_at at time zone 'UTC')::date as day, m.kind::text as line, m.cash_nanos, m.fee_nanos
    from moved m where m.kind not in ('rollover', 'debt') and (m.cash_nanos <> 0 or m.fee_nanos <> 0)
    union all
    select m.account_id, (m.recorded_at at time zone 'UTC')::date, 'received', g.cash_nanos, g.fee_nanos
    from moved m join credit_grant g on g.account_id = m.account_id and g.id = m.grant_id
    where m.kind = 'grant' and (g.cash_nanos <> 0 or g.fee_nanos <> 0)
    union all
    select o.account_id, (o.created_at at time zone 'UTC')::date, 'returned',
      share(g.cash_nanos, b.before - o.amount, g.granted) - share(g.cash_nanos, b.before, g.granted), 0
    from (select distinct m.account_id, m.operation_id from moved m where m.kind in ('refund', 'debt') and m.operation_id is not null) m
      join operation_key o on o.account_id = m.account_id and o.id = m.operation_id and o.verb = 'refund'
      join credit_grant g on g.account_id = o.account_id and g.id = o.grant_id
      cross join lateral (
        select coalesce(-sum(p.amount), 0)::bigint as before from operation_key p
        where p.account_id = o.account_id and p.verb = 'refund' and p.grant_id = o.grant_id and p.id < o.id) b
    where g.cash_nanos <> 0
    union all
    select p.account_id, p.booked, 'promotion', p.value_nanos, p.cost_nanos
    from book_parts(p_all, p_after) p join credit_grant g on g.account_id = p.account_id and g.id = p.grant_id
    where g.cash_nanos = 0 and g.source <> 'reversal'
  )
  select l.account_id, a.product_id, l.day, l.line, sum(l.cash_nanos)::bigint, sum(l.fee_nanos)::bigint
  from line l join accounts_account a on a.id = l.account_id
  group by 1, 2, 3, 4
$$;

-- The same by origin. What was bought is what the grant's operation says, without the payment's id and the number of copies.
create function book_origins(p_all boolean)
returns table (
  product_id bigint, day date, source text, label text, records bigint, value_nanos bigint, cost_nanos bigint, cash_nanos bigint, fee_nanos bigint)
language sql stable as $$
  with part as (
    select p.account_id, p.product_id, p.day, p.grant_id, sum(p.records) as records, sum(p.value_nanos) as value_nanos,
      sum(p.cost_nanos) as cost_nanos, sum(p.cash_nanos) as cash_nanos, sum(p.fee_nanos) as fee_nanos
    from book_parts(p_all) p group by 1, 2, 3, 4
  )
  select p.product_id, p.day, case when g.id is null or g.source = 'reversal' then 'debt' else r.source end,
    case when r.source in ('purchased', 'monthly') then coalesce(left(regexp_replace(
      regexp_replace(o.reason, ', [a-z]+_[A-Za-z0-9_]+$', ''), '^[0-9]+ × ', ''), 80), '') else '' end,
    sum(p.records)::bigint, sum(p.value_nanos)::bigint, sum(p.cost_nanos)::bigint, sum(p.cash_nanos)::bigint, sum(p.fee_nanos)::bigint
  from part p
    left join credit_grant g on g.account_id = p.account_id and g.id = p.grant_id
    left join credit_grant r on r.account_id = g.account_id and r.id = coalesce(g.root_id, g.id)
    left join lateral (
      select o.reason from operation_key o where o.account_id = r.account_id and o.verb = 'grant' and o.grant_id = r.id limit 1) o on true
  group by 1, 2, 3, 4
$$;

create view live_book_account as
  select account_id, day, line, cash_nanos, fee_nanos from book_account
  union all
  select account_id, day, line, cash_nanos, fee_nanos from book_lines(false);

create view live_book_product as
  select product_id, day, line, cash_nanos, fee_nanos from book_product
  union all
  select product_id, day, line, cash_nanos, fee_nanos from book_lines(false);

create view live_book_origin as
  select product_id, day, source, label, records, value_nanos, cost_nanos, cash_nanos, fee_nanos from book_origin
  union all
  select product_id, day, source, label, records, value_nanos, cost_nanos, cash_nanos, fee_nanos from book_origins(false);

create view live_book_user as
  select account_id, day, user_ref, records, value_nanos, cost_nanos, cash_nanos, fee_nanos from book_user
  union all
  select account_id, day, user_ref, records, value_nanos, cost_nanos, cash_nanos, fee_nanos from book_parts(false);

-- Folds what is new and returns of how many wallets. Two at once follow each other; charges wait for neither.
create function fold_books() returns int language plpgsql security definer set search_path = public, pg_temp as $$
declare
  v_wallets int;
begin
  perform from rollup_state for update;
  with wallets as materialized (
    select w.account_id, w.unit_id, w.seq from wallet w left join book_wallet b on b.account_id = w.account_id and b.unit_id = w.unit_id
    where w.seq > coalesce(b.seq, 0)
  ), lines as materialized (
    select * from book_lines(false)
  ), accounts as (
    insert into book_account as b select account_id, day, line, cash_nanos, fee_nanos from lines
    on conflict (account_id, day, line) do update set
      cash_nanos = b.cash_nanos + excluded.cash_nanos, fee_nanos = b.fee_nanos + excluded.fee_nanos
  ), products as (
    insert into book_product as b select product_id, day, line, sum(cash_nanos), sum(fee_nanos) from lines group by 1, 2, 3
    on conflict (product_id, day, line) do update set
      cash_nanos = b.cash_nanos + excluded.cash_nanos, fee_nanos = b.fee_nanos + excluded.fee_nanos
  ), origins as (
    insert into book_origin as b select * from book_origins(false)
    on conflict (product_id, day, source, label) do update set
      records = b.records + excluded.records, value_nanos = b.value_nanos + excluded.value_nanos, cost_nanos = b.cost_nanos + excluded.cost_nanos,
      cash_nanos = b.cash_nanos + excluded.cash_nanos, fee_nanos = b.fee_nanos + excluded.fee_nanos
  ), users as (
    insert into book_user as b
    select account_id, day, user_ref, sum(records), sum(value_nanos), sum(cost_nanos), sum(cash_nanos), sum(fee_nanos)
    from book_parts(false) group by 1, 2, 3
    on conflict (account_id, day, user_ref) do update set
      records = b.records + excluded.records, value_nanos = b.value_nanos + excluded.value_nanos, cost_nanos = b.cost_nanos + excluded.cost_nanos,
      cash_nanos = b.cash_nanos + excluded.cash_nanos, fee_nanos = b.fee_nanos + excluded.fee_nanos
  ), marks as (
    insert into book_wallet select * from wallets on conflict (account_id, unit_id) do update set seq = excluded.seq
  )
  select count(*) into v_wallets from wallets;
  return v_wallets;
end $$;

-- Puts a recount of every entry in the place of what was folded.
create function rebuild_books() returns int language plpgsql security definer set search_path = public, pg_temp as $$
begin
  perform from rollup_state for update;
  delete from book_account;
  delete from book_product;
  delete from book_origin;
  delete from book_user;
  delete from book_wallet;
  return fold_books();
end $$;

-- What of p_lump, paid at p_booked for the time from p_starts to p_ends, is earned by p_at: evenly, all parts sum to the whole.
create function earned_by(p_lump bigint, p_booked timestamptz, p_starts timestamptz, p_ends timestamptz, p_at timestamptz)
returns bigint language sql immutable as $$
  select case
    when p_booked >= p_at or p_starts >= p_at then 0
    when p_ends <= p_at then p_lump
    else floor(p_lump::numeric * extract(epoch from p_at - p_starts) / extract(epoch from p_ends - p_starts))::bigint
  end
$$;
