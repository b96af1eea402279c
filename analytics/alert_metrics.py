"""The metrics that alert rules watch: small questions about the rows of every app, each with one answer.

    read      asks a metric now
    METRICS   all of them by name
    words     a value as people read it; written and parse: as staff write it

A metric answers a :class:`Reading`. Not enough data is an answer of its own: a share of nothing is none, and nobody is told of it.

Metrics in ``DAYS`` count whole days in UTC, today among them, as the margin report does: "7 days" are today and the six before. The others
count back from the moment. None reads a table whose size grows with usage, but for what lies in its window.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from fractions import Fraction
from typing import Any, Literal
from urllib.parse import urlencode

from django.db import connection
from django.db.models import Max, QuerySet, Sum
from django.urls import reverse

from accounts.models import AuditEvent, Fault, Mail, WebhookDelivery, WebhookEndpoint
from analytics import audits, jobs, rollups
from analytics.models import AlertNotice, AlertRule, JobRun
from billing.models import Schedule, StripeEvent, StripeReconciliation
from metering import throttles
from metering.models import OpenAuthorization, UsageRecord
from pricing import catalog_file, margin_terms
from pricing.models import Product
from pricing.rating import TOKEN_COMPONENTS

PPM = 1_000_000
#: A share of nothing of something, or of next to nothing: a million percent stands for all above it.
MOST = 10_000 * PPM
#: So many names stand with an alert, of so many rows at most.
NAMES = 10
CANDIDATES = 100
#: More than that are said to be as many.
MAX_WAITING = 10_000

COSTS: Mapping[str, str] = {
    "cost": "cost",
    "ai_cost": "AI cost",
    "machine_cost": "machine cost",
}
REVENUES: Mapping[str, str] = {
    "received": "payments received",
    "packs_sold": "packs sold",
    "charged": "list value of usage",
    "cash_burnt": "cash behind burnt credits",
}
#: What language models are priced by; what is priced only by something else (seconds, GB) is a machine.
_OF_MODELS = sorted({*TOKEN_COMPONENTS, "images", "requests", "web_searches"})

Window = AlertRule.Window
DAYS = (Window.DAY, Window.WEEK, Window.THIRTY_DAYS, Window.MONTH)
MOMENTS = tuple(Window)
_SPANS = {
    Window.FIVE_MINUTES: timedelta(minutes=5),
    Window.QUARTER: timedelta(minutes=15),
    Window.HOUR: timedelta(hours=1),
    Window.DAY: timedelta(days=1),
    Window.WEEK: timedelta(days=7),
    Window.THIRTY_DAYS: timedelta(days=30),
}


@dataclass(frozen=True, slots=True)
class Ask:
    """A question of one product, or of the site (None), at ``now``. Some metrics take the names of one sum or two."""

    product: Product | None
    window: Window
    now: datetime
    numerator: str = ""
    denominator: str = ""
    minimum: int = 0

    @property
    def since(self) -> datetime:
        """When the window began, counted back from now; a month's is its first midnight in UTC."""
        if self.window == Window.MONTH:
            return self.now.astimezone(UTC).replace(day=1, hour=0, minute=0, second=0, microsecond=0)
        return self.now - _SPANS[self.window]

    @property
    def first_day(self) -> date:
        """The first day in UTC that counts, where days do."""
        today = self.now.astimezone(UTC).date()
        return today.replace(day=1) if self.window == Window.MONTH else today - _SPANS[self.window] + timedelta(days=1)

    @property
    def end(self) -> date:
        """The first day that does not count."""
        return self.now.astimezone(UTC).date() + timedelta(days=1)

    @property
    def product_id(self) -> int:
        assert self.product is not None
        return self.product.pk


@dataclass(frozen=True, slots=True)
class Reading:
    """``value`` in the metric's unit, exact; None: not enough data. ``detail`` says it in words, ``rows`` names what it is about."""

    value: Fraction | None
    detail: str = ""
    rows: Sequence[str] = ()
    link: str = ""


UNKNOWN = Reading(None)
Unit = Literal["share", "dollars", "seconds", "count"]


@dataclass(frozen=True, slots=True)
class Metric:
    """``each``: asked of each product for itself; else of the site as a whole. ``sums``: how many sums a rule chooses for it.

    ``within``: the value is of the window; else the window says only how far back it looks, if at all.
    """

    name: str
    title: str
    unit: Unit
    windows: tuple[Window, ...]
    each: bool
    sums: int
    within: bool
    read: Callable[[Ask], Reading]


METRICS: dict[str, Metric] = {}


def read(*, metric: str, ask: Ask) -> Reading:
    """The answer of a metric now. Reads alone; raises what the database raises."""
    return METRICS[metric].read(ask)


def _metric(
    title: str, unit: Unit, *, windows: tuple[Window, ...] = MOMENTS, each: bool = False, sums: int = 0, within: bool = False
) -> Callable[[Callable[[Ask], Reading]], Callable[[Ask], Reading]]:
    def register(function: Callable[[Ask], Reading]) -> Callable[[Ask], Reading]:
        METRICS[function.__name__] = Metric(function.__name__, title, unit, windows, each, sums, within, function)
        return function

    return register


# What was earned and spent ----------------------------------------------------------------------------------------------------


@_metric("margin", "share", windows=DAYS, each=True, sums=2, within=True)
def margin(ask: Ask) -> Reading:
    """Revenue less cost, of revenue."""
    return _of_revenue(ask, lambda cost, revenue: revenue - cost)


@_metric("share of cost in revenue", "share", windows=DAYS, each=True, sums=2, within=True)
def cost_share(ask: Ask) -> Reading:
    """Cost, of revenue."""
    return _of_revenue(ask, lambda cost, revenue: cost)


@_metric("spending", "dollars", windows=DAYS, each=True, sums=1, within=True)
def spending(ask: Ask) -> Reading:
    """What usage cost us."""
    cost = _sums(ask, ask.numerator)[ask.numerator]
    return Reading(Fraction(cost), COSTS[ask.numerator], link=_margin_report(ask))


@_metric("spending today, of a usual day's,", "share", windows=(Window.DAY,), each=True, sums=1)
def burn_rate(ask: Ask) -> Reading:
    """What today cost so far, of what the seven days before cost on average."""
    today = _sums(ask, ask.numerator)[ask.numerator]
    week = _summed(ask, ask.first_day - timedelta(days=7), ask.first_day, ask.numerator)[ask.numerator]
    if week < 7 * max(ask.minimum, 1):
        return UNKNOWN
    usual = week // 7
    return Reading(
        min(Fraction(7 * PPM * today, week), Fraction(MOST)),
        f"{dollars(today)} today, {dollars(usual)} on a usual day",
        link=_margin_report(ask),
    )


@_metric("dearest usage record", "dollars", within=True)
def dearest_record(ask: Ask) -> Reading:
    """What the dearest single use cost us, of the events of the window."""
    found = UsageRecord.objects.filter(event_at__gt=ask.since, event_at__lte=ask.now, cost_nanos__isnull=False)
    top = found.order_by("-cost_nanos").select_related("account", "model").first()
    if top is None or top.cost_nanos is None:
        return UNKNOWN
    link = reverse("admin:metering_usagerecord_change", args=[f"{top.account_id}-{top.pk}"])
    return Reading(Fraction(top.cost_nanos), f"{top.model} by {top.account.public_id}", [top.account.public_id], link)


@_metric("distance of our record from providers' bills", "share", windows=(Window.THIRTY_DAYS, Window.MONTH))
def cost_accuracy(ask: Ask) -> Reading:
    """The farthest that our record is from a bill (either way, of the bill), of the bills that end within the window."""
    bills = _rows("alert_bills", since=ask.first_day)
    if not bills:
        return UNKNOWN
    provider, since, until, billed, recorded = max(bills, key=lambda bill: abs(Fraction(bill[4] - bill[3], bill[3])))
    detail = f"{provider} billed {dollars(billed)} for {since} to {until - timedelta(days=1)}, we recorded {dollars(recorded)}"
    off = min(Fraction(PPM * abs(recorded - billed), billed), Fraction(MOST))
    return Reading(off, detail, [provider], reverse("admin:analytics_providerbill_changelist"))


@_metric("things on sale below their floor", "count", each=True)
def below_floor(ask: Ask) -> Reading:
    """Packs, plans and limits on cost that leave less than the product's floor if they are used up on the dearest model."""
    assert ask.product is not None
    document = catalog_file.current(slug=ask.product.slug)
    if document is None or "floor_margin_percent" not in document["product"]:
        return UNKNOWN
    found = [one for one in margin_terms.worst_first(margin_terms.look(document, at=ask.now)) if one.is_below_floor]
    names = list(dict.fromkeys(one.offer for one in found))
    link = f"{reverse('admin:analytics_margin_lint')}?{urlencode({'product': ask.product.slug})}"
    return Reading(Fraction(len(names)), " ".join(one.headline for one in found[:NAMES]), names[:NAMES], link)


def _of_revenue(ask: Ask, part: Callable[[int, int], int]) -> Reading:
    """``part`` of revenue. Unknown while both are under the minimum; where nothing came in, as far as it goes."""
    sums = _sums(ask, ask.numerator, ask.denominator)
    cost, revenue = sums[ask.numerator], sums[ask.denominator]
    if max(cost, revenue) < max(ask.minimum, 1):
        return UNKNOWN
    of, bound = part(cost, revenue), Fraction(MOST)
    share = (bound if of > 0 else -bound) if revenue <= 0 else max(-bound, min(bound, Fraction(PPM * of, revenue)))
    detail = f"{REVENUES[ask.denominator]} {dollars(revenue)}, {COSTS[ask.numerator]} {dollars(cost)}"
    return Reading(share, detail, link=_margin_report(ask))


def _sums(ask: Ask, *wanted: str) -> Mapping[str, int]:
    return _summed(ask, ask.first_day, ask.end, *wanted)


def _summed(ask: Ask, since: date, until: date, *wanted: str) -> Mapping[str, int]:
    [found] = _rows("alert_sums", product=ask.product_id, since=since, until=until, wanted=list(wanted), of_models=_OF_MODELS)
    return dict(zip(("cost", "ai_cost", "machine_cost", "charged", "cash_burnt", "packs_sold", "received"), found, strict=True))


def _margin_report(ask: Ask) -> str:
    assert ask.product is not None
    query = {"since": ask.first_day, "last_day": ask.end - timedelta(days=1), "product": ask.product.slug}
    return f"{reverse('admin:analytics_margin_changelist')}?{urlencode(query)}"


# Accounts and their limits ----------------------------------------------------------------------------------------------------


@_metric("accounts over their cost tier's limit", "count", each=True)
def over_tier_limit(ask: Ask) -> Reading:
    """Accounts that cost us more in their day or billing period than their tier allows."""
    return _beyond(ask, PPM)


@_metric("accounts at 90 % of their cost tier's limit or more", "count", each=True)
def near_tier_limit(ask: Ask) -> Reading:
    """The same, and those that are nearly there."""
    return _beyond(ask, 9 * PPM // 10 - 1)


@_metric("share of accounts throttled", "share", each=True)
def throttled_share(ask: Ask) -> Reading:
    """Accounts that may begin no work, by their cost limit or by a stop, of those that are active in their present windows."""
    found = throttles.share(now=ask.now, product=ask.product)
    if found.active < max(ask.minimum, 1):
        return UNKNOWN
    link = reverse("admin:accounts_account_changelist") + f"?product__id__exact={ask.product_id}"
    return Reading(Fraction(PPM * found.throttled, found.active), f"{found.throttled:,} of {found.active:,} active accounts", link=link)


def _beyond(ask: Ask, ppm: int) -> Reading:
    spending = throttles.at_risk(now=ask.now, product=ask.product, ppm=ppm)
    named = list(dict.fromkeys(one.account.public_id for one in spending))
    detail = ", ".join(f"{one.account.public_id} ({dollars(one.used_nanos)} of {dollars(one.limit_nanos)})" for one in spending[:NAMES])
    return Reading(Fraction(len(named)), detail, named[:NAMES], reverse("admin:accounts_account_changelist") + _one(named))


def _one(names: Sequence[str]) -> str:
    return "?" + urlencode({"q": names[0]}) if len(names) == 1 else ""


# What goes wrong ----------------------------------------------------------------------------------------------------------------


@_metric("failed deductions", "count", within=True)
def failed_deductions(ask: Ask) -> Reading:
    """Work that was done and reported, and could not be deducted."""
    return _faults(ask, Fault.Kind.DEDUCTION)


@_metric("database errors", "count", within=True)
def database_errors(ask: Ask) -> Reading:
    """Requests that the database did not answer."""
    return _faults(ask, Fault.Kind.DATABASE)


@_metric("server errors", "count", within=True)
def server_errors(ask: Ask) -> Reading:
    """Requests that were answered with a fault of ours."""
    return _faults(ask, Fault.Kind.SERVER)


@_metric("uses without a price", "count", each=True)
def missing_prices(ask: Ask) -> Reading:
    """Usage that waits for the price of its model, whenever it was."""
    found = _rows("alert_unpriced", product=ask.product_id, limit=MAX_WAITING)
    detail = "; ".join(f"No pricing found for {model} ({waiting:,})" for model, waiting in found[:NAMES])
    names = [model for model, _ in found[:NAMES]]
    return Reading(
        Fraction(sum(waiting for _, waiting in found)),
        detail,
        names,
        reverse("admin:metering_usagerecord_changelist") + "?outcome__exact=unpriced&within=all",
    )


@_metric("jobs that are late", "count")
def late_jobs(ask: Ask) -> Reading:
    """Runs that should be over by now, and subjects of a job that have been failing for as long."""
    return _runs(jobs.late(now=ask.now))


@_metric("runs given up", "count", within=True)
def failed_jobs(ask: Ask) -> Reading:
    """Runs of jobs, and single subjects of them, that failed for the last time."""
    return _runs(jobs.given_up(since=ask.since).filter(ended_at__lte=ask.now))


@_metric("schedules stopped because they granted again and again", "count")
def runaways(ask: Ask) -> Reading:
    """Schedules of credit that were about to grant too often, and were stopped for it until staff let them go on."""
    stopped = Schedule.objects.filter(stopped_at__isnull=False, stopped_at__lte=ask.now).select_related("account").order_by("stopped_at")
    named = [f"{each.account.public_id}: {each.stopped_because}" for each in stopped[:NAMES]]
    accounts = [each.account.public_id for each in stopped[:NAMES]]
    return Reading(Fraction(stopped.count()), "; ".join(named), named, reverse("admin:accounts_account_changelist") + _one(accounts))


@_metric("findings of the audit", "count")
def audit_findings(ask: Ask) -> Reading:
    """What the last audit found not to hold."""
    found = audits.open_findings().order_by("check_name", "account_id")
    named = [str(each) for each in found[:NAMES]]
    return Reading(Fraction(found.count()), "; ".join(named), named, reverse("admin:analytics_auditfinding_changelist"))


@_metric("wallets whose sums do not agree", "count")
def wallet_equations(ask: Ask) -> Reading:
    """Of the wallets that moved in the window, those that are not what their grants and their last entry say."""
    names = [name for (name,) in _rows("alert_wallets", since=ask.since)]
    return Reading(
        Fraction(len(names)), ", ".join(names[:NAMES]), names[:NAMES], reverse("admin:accounts_account_changelist") + _one(names)
    )


@_metric("silence of Stripe's webhooks", "seconds", windows=(Window.WEEK, Window.THIRTY_DAYS))
def webhook_silence(ask: Ask) -> Reading:
    """Since the last event came; unknown where fewer than the minimum came in the window, for then nobody knows what is usual."""
    lately = StripeEvent.objects.filter(received_at__gt=ask.since, received_at__lte=ask.now)
    if lately.count() < max(ask.minimum, 1):
        return UNKNOWN
    last = lately.aggregate(last=Max("received_at"))["last"]
    return Reading(
        _seconds(ask.now - last), f"the last event came {last:%Y-%m-%d %H:%M} UTC", link=reverse("admin:billing_stripeevent_changelist")
    )


@_metric("age of the oldest open hold", "seconds")
def oldest_hold(ask: Ask) -> Reading:
    """How long ago the oldest hold was made that nobody has resolved. Nobody holds anything: no time at all."""
    oldest = OpenAuthorization.objects.filter(state=OpenAuthorization.State.OPEN).order_by("created_at").select_related("account").first()
    if oldest is None:
        return Reading(Fraction(0))
    link = reverse("admin:metering_openauthorization_changelist") + "?state__exact=open"
    return Reading(_seconds(max(ask.now - oldest.created_at, timedelta())), oldest.account.public_id, [oldest.account.public_id], link)


@_metric("dead letters", "count", within=True)
def dead_letters(ask: Ask) -> Reading:
    """What came into a queue in the window and was given up: mails, Stripe's events, webhooks, notices of alerts; and endpoints of webhooks
    that were disabled in it because they failed."""
    dead = {
        "mails": (Mail.objects.filter(queued_at__gt=ask.since, state=Mail.State.DEAD), "accounts_mail"),
        "Stripe events": (
            StripeEvent.objects.filter(received_at__gt=ask.since, state__in=[StripeEvent.State.DEAD, StripeEvent.State.QUARANTINED]),
            "billing_stripeevent",
        ),
        "webhooks": (WebhookDelivery.objects.filter(queued_at__gt=ask.since, state=WebhookDelivery.State.DEAD), "accounts_webhookdelivery"),
        "webhook endpoints": (
            WebhookEndpoint.objects.filter(disabled_at__gt=ask.since, deleted_at=None).exclude(disabled_reason__startswith="By staff: "),
            "accounts_webhookendpoint",
        ),
        "notices": (AlertNotice.objects.filter(queued_at__gt=ask.since, state=AlertNotice.State.DEAD), "analytics_alertnotice"),
    }
    counts = {name: (rows.count(), page) for name, (rows, page) in dead.items()}
    found = [(f"{count:,} {name}", page) for name, (count, page) in counts.items() if count]
    link = reverse(f"admin:{found[0][1]}_changelist") if found else ""
    names = [name for name, _ in found]
    return Reading(Fraction(sum(count for count, _ in counts.values())), ", ".join(names), names, link)


@_metric("differences from Stripe", "count")
def stripe_differences(ask: Ask) -> Reading:
    """What the last whole comparison with Stripe found and could not put right."""
    last = StripeReconciliation.objects.filter(finished_at__isnull=False).order_by("-started_at").first()
    if last is None:
        return UNKNOWN
    names = [str(problem)[:200] for problem in last.problems[:NAMES]]
    link = reverse("admin:billing_stripereconciliation_change", args=[last.pk])
    return Reading(Fraction(len(last.problems)), "; ".join(names), names, link)


@_metric("alert rules that cannot be looked at", "count")
def broken_rules(ask: Ask) -> Reading:
    """Rules whose metric failed the last time."""
    names = list(AlertRule.objects.filter(enabled=True).exclude(error="").order_by("slug").values_list("name", flat=True))
    return Reading(Fraction(len(names)), ", ".join(names[:NAMES]), names[:NAMES], reverse("admin:analytics_alertrule_changelist"))


@_metric("log-ins of superusers", "count")
def superuser_log_ins(ask: Ask) -> Reading:
    """Who signed in with every right there is, in the window."""
    found = AuditEvent.objects.filter(
        kind=AuditEvent.Kind.SIGNED_IN, entry__user__is_superuser=True, entry__action_time__gt=ask.since, entry__action_time__lte=ask.now
    )
    names = list(dict.fromkeys(found.order_by("-pk").values_list("entry__user__email", flat=True)[:CANDIDATES]))
    link = reverse("admin:admin_logentry_changelist") + f"?audit__kind__exact={AuditEvent.Kind.SIGNED_IN}"
    return Reading(Fraction(found.count()), ", ".join(names[:NAMES]), names[:NAMES], link)


def _faults(ask: Ask, kind: Fault.Kind) -> Reading:
    """Of a minute that the window begins in, all."""
    first = ask.since.replace(second=0, microsecond=0)
    found = Fault.objects.filter(kind=kind, minute__gte=first, minute__lte=ask.now)
    counted = found.aggregate(n=Sum("count"))["n"] or 0
    last = found.order_by("-minute", "-pk").values_list("about", flat=True).first()
    return Reading(Fraction(counted), f"The last: {last}" if last else "", [last] if last else [])


def _runs(found: QuerySet[JobRun]) -> Reading:
    named = list(dict.fromkeys(f"{run.job} of {run.subject}" if run.subject else run.job for run in found[:CANDIDATES]))
    return Reading(Fraction(found.count()), ", ".join(named[:NAMES]), named[:NAMES], reverse("admin:analytics_jobrun_changelist"))


def _seconds(span: timedelta) -> Fraction:
    return Fraction(span // timedelta(microseconds=1), 1_000_000)


def _rows(name: str, **parameters: Any) -> list[tuple[Any, ...]]:
    with connection.cursor() as cursor:
        cursor.execute(rollups.query(name), parameters)
        rows: list[tuple[Any, ...]] = cursor.fetchall()
        return rows


# In words -----------------------------------------------------------------------------------------------------------------------


def dollars(nanos: int) -> str:
    """``$1,234.50``, rounded half to even to the cent."""
    cents = round(Fraction(nanos, 10_000_000))
    return f"{'-' if cents < 0 else ''}${abs(cents) // 100:,}.{abs(cents) % 100:02}"


def words(unit: Unit, value: Fraction | int) -> str:
    """A value of a metric as people write it: ``61.3 %``, ``$500.00``, ``26 h``, ``12``."""
    match unit:
        case "share" if not -MOST < value < MOST:
            return "beyond measure (no revenue)"
        case "share":
            hundredths = round(Fraction(value) / 100)
            text = f"{'-' if hundredths < 0 else ''}{abs(hundredths) // 100:,}.{abs(hundredths) % 100:02}"
            return f"{text.rstrip('0').rstrip('.')} %"
        case "dollars":
            return dollars(round(value))
        case "seconds":
            seconds = round(value)
            for size, name in ((86_400, "d"), (3_600, "h"), (60, "min")):
                if seconds >= 2 * size:
                    return f"{seconds // size:,} {name}"
            return f"{seconds} s"
        case "count":
            return f"{round(value):,}"


def unit_of_minimum(metric: Metric) -> Unit:
    """What a rule's minimum counts: dollars where the metric is of money, else accounts or events."""
    return "dollars" if metric.sums else "count"


_WRITTEN = re.compile(r"\s*(-?)([0-9]{1,12})(?:\.([0-9]{1,9}))?\s*(%|s|min|h|d)?\s*", re.ASCII)
_SIZES = {"s": 1, "min": 60, "h": 3_600, "d": 86_400}
_HOW = {
    "share": "Write a percentage such as 70 or 12.5, with at most four digits after the point.",
    "dollars": "Write dollars such as 500 or 12.50.",
    "seconds": "Write a time such as 90 min, 25 h or 2 d.",
    "count": "Write a whole number such as 10.",
}


def parse(*, unit: Unit, text: str) -> int:
    """What staff wrote, in the metric's unit. Percentages may be below zero (a margin), nothing else.

    :raises ValueError: it is written otherwise, or cannot be; the message says how to write it.
    """
    found = _WRITTEN.fullmatch(text)
    if found is None:
        raise ValueError(_HOW[unit])
    sign, whole, part, mark = found[1], int(found[2]), found[3] or "", found[4]
    digits = {"share": 4, "dollars": 9, "seconds": 0, "count": 0}[unit]
    if len(part) > digits or (sign and unit != "share") or mark not in {"share": (None, "%"), "seconds": tuple(_SIZES)}.get(unit, (None,)):
        raise ValueError(_HOW[unit])
    scale: int = 10**digits
    value = (whole * scale + int(part.ljust(digits, "0") or 0)) * (_SIZES[mark] if unit == "seconds" and mark else 1)
    if value > 10**17:
        raise ValueError("That is more than anything can be.")
    return -value if sign else value


def written(*, unit: Unit, value: int) -> str:
    """The shortest text that :func:`parse` makes ``value`` of."""
    if unit == "seconds":
        mark = next(mark for mark in ("d", "h", "min", "s") if value % _SIZES[mark] == 0)
        return f"{value // _SIZES[mark]} {mark}"
    exact = Decimal(value).scaleb({"share": -4, "dollars": -9, "count": 0}[unit])
    return f"{exact.normalize():f}"
