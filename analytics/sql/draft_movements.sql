-- What came to and went from the credits of :accounts in the period otherwise than by usage and by the calendar's own expiry and rollover.
select account_id, grant_id, effective_at, amount
from ledger_entry
where account_id = any (%(accounts)s) and unit_id = %(unit)s and recorded_at >= %(since)s and recorded_at < %(until)s and grant_id is not null
  and kind in ('grant', 'adjustment', 'refund', 'freeze', 'unfreeze', 'reversal')
order by account_id, effective_at, seq
