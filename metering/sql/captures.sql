-- What the ledger appended about answers whose length nobody had said. They come and go all day: vacuum by count.
alter table output_delta set (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 20000);

-- Takes up to p_limit captures away. Two at once take different ones.
create function take_captures(p_limit int) returns table (product_id bigint, model_id int, feature_id int, quantities bigint[])
language sql security definer set search_path = public, pg_temp as $$
  with taken as (
    delete from output_delta where ctid = any (array(select ctid from output_delta limit p_limit for update skip locked)) returning *
  )
  select a.product_id, t.model_id, t.feature_id, t.quantities from taken t join accounts_account a on a.id = t.account_id
$$;
