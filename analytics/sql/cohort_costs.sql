-- What each member of a cohort (:cohort) who used anything cost us, in nano-USD, on the UTC days from :since to :until, both counted, from
-- the day of the invitation on; and how many of these days that is.
select m.id, sum(l.cost_nanos)::bigint, %(until)s::date - greatest(%(since)s::date, (m.invited_at at time zone 'UTC')::date) + 1
from metering_cohortmember m join live_rollup_account l on l.account_id = m.account_id
where m.cohort_id = %(cohort)s and l.day >= greatest(%(since)s::date, (m.invited_at at time zone 'UTC')::date) and l.day <= %(until)s::date
group by m.id
having sum(l.records) > 0
