-- Every table, column, index and constraint of dj-stripe, as one text each.
with tables as (
    select oid, relname from pg_class where relnamespace = 'public'::regnamespace and relkind = 'r' and relname like 'djstripe%'
)
select format('table %s', relname) from tables
union all
select format('column %s.%s %s%s%s%s', relname, attname, format_type(atttypid, atttypmod), case when attnotnull then ' not null' end,
              ' identity ' || nullif(attidentity::text, ''), ' default ' || pg_get_expr(adbin, adrelid))
  from tables join pg_attribute on attrelid = tables.oid left join pg_attrdef on adrelid = attrelid and adnum = attnum
 where attnum > 0 and not attisdropped
union all
select 'index ' || pg_get_indexdef(indexrelid) from tables join pg_index on indrelid = tables.oid
union all
select format('constraint %s on %s %s', conname, relname, pg_get_constraintdef(pg_constraint.oid)) from tables join pg_constraint on conrelid = tables.oid
