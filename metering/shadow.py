"""What limits in shadow mode would have refused, noted while the work goes on.

    note    counts one call that such a limit let pass

One row for each account, limit and window, so a note is one statement, made only where a shadow limit was passed, after the work was
authorized. It never fails the call: what cannot be noted is logged. :mod:`analytics.shadow` reports it.
"""

from __future__ import annotations

from datetime import datetime

import structlog
from django.db import DatabaseError, connection, transaction

from accounts.models import Account
from billing import periods

_NOTE = """
    insert into metering_shadowrefusal as r
      (account_id, layer, meter, window_end, count, value_nanos, allowed, most_used, first_at, last_at)
    values (%s, %s, %s, %s, 1, %s, %s, %s, %s, %s)
    on conflict (account_id, meter, window_end) do update set
      count = r.count + 1, value_nanos = least(r.value_nanos::numeric + excluded.value_nanos, 9223372036854775807)::bigint,
      allowed = excluded.allowed, most_used = greatest(r.most_used, excluded.most_used),
      first_at = least(r.first_at, excluded.first_at), last_at = greatest(r.last_at, excluded.last_at)
"""

log = structlog.get_logger(__name__)


def note(
    *, account: Account, layer: str, meter: str, window_end: datetime | None, allowed: int, used: int, value_nanos: int, now: datetime
) -> None:
    """Counts one call that the limit would have refused, and what it was expected to be worth (list value, nano-USD).

    A limit without a window (open work, the size of one request, a lifetime) is noted by the day of UTC.
    """
    window_end = window_end or periods.day_at(now)[1]
    try:
        with transaction.atomic(), connection.cursor() as cursor:
            cursor.execute(_NOTE, [account.pk, layer, meter, window_end, value_nanos, allowed, used, now, now])
    except DatabaseError as error:
        log.error("shadow refusal not noted", account=account.public_id, meter=meter, exc_info=error)
