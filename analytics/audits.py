"""The audit as a job: what does not hold stays as rows, from the run that saw it first to the one that saw it no more.

run            checks every equation of the ledger and every sum of the rollups, and keeps what it found
open_findings  the findings that the last run still saw
"""

from __future__ import annotations

from datetime import datetime

import structlog
from django.db import transaction
from django.db.models import QuerySet

from analytics import rollups
from analytics.models import AuditFinding
from billing import audit

#: So many findings are kept of one run: who has more has one cause.
MAX_FINDINGS = 1_000
ROLLUPS = "the rollups are a recount of the records"

log = structlog.get_logger(__name__)


def run(*, now: datetime) -> int:
    """Returns how many findings there are now. Reads everything, in snapshots of its own; work goes on meanwhile."""
    found: dict[tuple[str, int | None, str], None] = {(each.check, each.account_id, each.text): None for each in audit.run()}
    found |= {(ROLLUPS, None, str(each)): None for each in rollups.check()}
    seen = list(found)[:MAX_FINDINGS]
    if found:
        log.error("audit finding", findings=len(found), first=seen[0])
    with transaction.atomic():
        known = {(each.check_name, each.account_id, each.text): each for each in open_findings().select_for_update()}
        AuditFinding.objects.filter(pk__in=[known[each].pk for each in seen if each in known]).update(last_seen_at=now)
        AuditFinding.objects.filter(pk__in=[row.pk for each, row in known.items() if each not in found]).update(gone_at=now)
        AuditFinding.objects.bulk_create(
            AuditFinding(check_name=check, account_id=account_id, text=text, first_seen_at=now, last_seen_at=now)
            for check, account_id, text in seen
            if (check, account_id, text) not in known
        )
    return len(found)


def open_findings() -> QuerySet[AuditFinding]:
    """What does not hold, as far as the last audit saw."""
    return AuditFinding.objects.filter(gone_at=None)
