"""What our tables say of some accounts, as text that is the same for two histories with the same end.

Every column of these tables is in, also one that is added tomorrow, except those that are named here with the reason.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from django.db import connection


@dataclass(frozen=True, slots=True)
class Part:
    """The rows of a table that belong to an account and fulfil ``where``; ``without`` these columns."""

    table: str
    without: tuple[str, ...] = ()
    where: str = "true"


#: Two purchases may be told in either order, and each entry says what the wallet had after it.
RUNNING = ("balance_after", "debt_after")
#: Grows with every read.
READ = ("read_number",)
#: The default plan begins or ends when we hear of it; a plan at Stripe has Stripe's times.
HEARD = ("anchor_at", "current_period_start", "current_period_end", "started_at", "ended_at")

#: A mail says what the wallet had when it was queued; that there is one, and about what, is in.
MAIL = ("id", "context", "queued_at", "next_attempt_at")

#: Of histories that were told when they were over: what is in the ledger has to be the same to the last entry. Left out are the ids of our
#: rows and the times at which they were written, besides what is said above.
WHOLE = (
    Part("wallet"),
    Part("credit_grant", ("id", "starts_at")),
    Part("credit_schedule"),
    Part("ledger_entry", ("seq", "grant_id", "operation_id", "effective_at", "recorded_at", *RUNNING)),
    Part("operation_key", ("id", "grant_id", "created_at", *RUNNING)),
    Part("billing_subscription", ("id",), "stripe_id is not null"),
    Part("billing_subscription", ("id", *HEARD), "stripe_id is null"),
    Part("billing_stripecustomer"),
    Part("billing_stripesubscription", READ),
    Part("billing_stripepayment", READ),
    Part("billing_stripeinvoice", READ),
    Part("accounts_mail", MAIL),
)
#: Of histories that were told while they happened: a refund of 5 may be two entries or one, a dispute seen open or not at all, a plan two
#: rows or one, and whose plan was over before we heard of it is not told that it ended. What is left of it all has to be the same.
END = (
    Part("wallet", ("seq",)),
    Part("credit_grant", ("id", "starts_at")),
    Part("billing_subscription", ("id", "started_at"), "status <> 'canceled' and stripe_id is not null"),
    Part("billing_subscription", ("id", *HEARD), "status <> 'canceled' and stripe_id is null"),
    Part("billing_stripecustomer"),
    Part("billing_stripesubscription", READ),
    Part("billing_stripepayment", READ),
    Part("billing_stripeinvoice", READ),
    Part("accounts_mail", MAIL, "kind <> 'plan_ended'"),
)


def digest(account_ids: Collection[int], parts: Collection[Part]) -> str:
    """One line a row."""
    lines = []
    with connection.cursor() as cursor:
        for part in parts:
            cursor.execute(
                f"select (to_jsonb(t) - %s::text[])::text from {part.table} t where account_id = any(%s) and {part.where} order by 1",
                [list(part.without), list(account_ids)],
            )
            lines += [f"{part.table} {row}" for (row,) in cursor.fetchall()]
    return "\n".join(lines)
