-- What was measured in a cohort (:cohort) after :since up to :until, by metric: of each member, and of all together (member_id null, whole).
select metric, member_id, grouping(member_id) = 1 as whole, count(*), sum(value)::bigint,
  percentile_disc(0.95) within group (order by value), (array_agg(value order by measured_at desc, id desc))[1]
from metering_cohortsample
where cohort_id = %(cohort)s and measured_at > %(since)s and measured_at <= %(until)s
group by grouping sets ((metric), (metric, member_id))
