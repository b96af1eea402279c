"""What was used, and why it cost what it did: the GET endpoints of usage.

    Records, Record   the usage records, the newest first, and one of them
    Explain           one charge, from the quantities to the grants that it was burnt from
    Current, History  sums of this billing period, and by month or day
    Limits            what every layer of the plan would say now

A key sees prices as far as its product's ``visibility`` goes, and wholesale costs only with the scope ``admin:read``.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from typing import Any, Literal
from uuid import UUID

from django.db.models import BigIntegerField, Count, F, QuerySet, Sum, Value
from django.db.models.functions import Coalesce, TruncDay, TruncMonth
from django.utils import timezone
from drf_spectacular.types import OpenApiTypes
from drf_spectacular.utils import OpenApiParameter, extend_schema
from pydantic import Field
from rest_framework.request import Request
from rest_framework.response import Response

from accounts import api, reads, tenancy
from accounts.api_keys import Principal
from accounts.models import Account, ApiKey
from billing import ledger, periods, subscriptions
from billing.models import LedgerEntry, UsageRating
from metering import charges, explanation, refusal_explanation, throttles, usage
from metering.api import layers
from metering.models import Feature, OpenAuthorization, Refusal, UsageModel, UsageRecord
from pricing import catalog, rating
from pricing.models import Product

MAX_BUCKETS = 366

# Records ----------------------------------------------------------------------------------------------------------------------


class RecordAnswer(reads.Answer):
    """Finished work, or work under way (``authorized``, ``timed_out``, ``awaiting_price``).

    ``charged`` is in ``unit``, null while there is no price; ``waived`` is what the product let go beyond the hold. ``cost`` is what we
    paid upstream, in US dollars, for keys with admin:read only. ``counted_at`` is set where the event came more than 48 hours after its
    billing period had ended: the closed period stays as it was, and this is an adjustment in the period of ``counted_at``.
    """

    id: str
    authorization: str | None
    account: str
    outcome: str
    model: str
    feature: str | None
    user: str | None
    session: str | None
    run: str | None
    quantities: dict[str, int]
    charged: reads.Amount | None
    waived: reads.Amount
    hold: reads.Amount
    unit: str
    event_at: datetime
    recorded_at: datetime | None
    counted_at: datetime | None
    cost: reads.Amount | None = None


class RecordsAnswer(reads.Answer):
    """A page of records. ``next_cursor`` null = the last page."""

    items: list[RecordAnswer]
    next_cursor: str | None


class RecordsQuery(reads.Page, reads.Between):
    model: reads.Text | None = Field(None, description="`provider:model`")
    feature: reads.Text | None = None
    user: reads.Text | None = None
    cursor: reads.Text | None = Field(None, description="`next_cursor` of the page before.")


class Records(reads.Read):
    permission_classes = [api.HasScope.of("usage:read")]

    @extend_schema(operation_id="listRecords", parameters=reads.parameters(RecordsQuery), responses=RecordsAnswer)
    def get(self, request: Request) -> Response:
        """The account's finished work, the newest first."""
        query = self.asked(request, RecordsQuery)
        account = self.account(request, query)
        records = _filtered(charges.of(account), account, query)
        with tenancy.acting_as(account=account):
            found = charges.with_ratings(account, list(records.order_by("-id")[: query.limit + 1]))
        page = found[: query.limit]
        return RecordsAnswer(
            items=_answers(account, page, reads.principal(request)),
            next_cursor=usage.public_id(account, page[-1].id, kind="rec") if len(found) > query.limit else None,
        ).response()


def _filtered(records: QuerySet[UsageRecord], account: Account, query: RecordsQuery) -> QuerySet[UsageRecord]:
    """:raises Problem: 422 for a cursor that is none."""
    if query.cursor is not None:
        try:
            records = records.filter(id__lt=usage.split_id(query.cursor)[1])
        except ledger.NotFound:
            errors = [{"field": "cursor", "message": "Give the next_cursor of the page before."}]
            raise api.Problem(422, "invalid_request", "Some fields are wrong.", errors=errors) from None
    if query.since is not None:
        records = records.filter(event_at__gte=query.since)
    if query.until is not None:
        records = records.filter(event_at__lt=query.until)
    if query.user is not None:
        records = records.filter(user_ref=query.user)
    # Names are numbers in the records. They are looked up here, as ourselves: a tenant's role reads its own rows and nothing else.
    if query.model is not None:
        provider, _, name = query.model.partition(":")
        records = records.filter(model_id__in=list(UsageModel.objects.filter(provider=provider, name=name).values_list("id", flat=True)))
    if query.feature is not None:
        features = Feature.objects.filter(product_id=account.product_id, slug=query.feature)
        records = records.filter(feature_id__in=list(features.values_list("id", flat=True)))
    return records


_RECORD_ID = OpenApiParameter("record", OpenApiTypes.STR, OpenApiParameter.PATH, description="`rec_…`, or the `auth_…` that it began as.")


class Record(reads.Read):
    permission_classes = [api.HasScope.of("usage:read")]

    @extend_schema(operation_id="getRecord", parameters=[_RECORD_ID], responses=RecordAnswer)
    def get(self, request: Request, record: str) -> Response:
        """One usage record, or one authorization that is still open."""
        self.asked(request, reads.Query)
        principal = reads.principal(request)
        account, id_ = _named(principal, record)
        with tenancy.acting_as(account=account):
            found: UsageRecord | OpenAuthorization = charges.record(account, id_) or _open(account, id_)
        [answer] = _answers(account, [found], principal)
        return answer.response()


def _named(principal: Principal, value: str) -> tuple[Account, UUID]:
    """The account and the row that a public id names. :raises Problem: 404, the same for what is another's and what is not at all."""
    try:
        account_id, id_ = usage.split_id(value)
        return api.account_for(principal, account_id), id_
    except (ledger.NotFound, api.Problem):
        raise _no_such_record() from None


def _no_such_record() -> api.Problem:
    return api.Problem(404, "not_found", "No such usage record.")


def _open(account: Account, id_: UUID) -> OpenAuthorization:
    found = OpenAuthorization.objects.filter(account_id=account.pk, id=id_).defer("cost_nanos").first()
    if found is None:
        raise _no_such_record()
    return found


def _answers(account: Account, rows: Iterable[UsageRecord | OpenAuthorization], principal: Principal) -> list[RecordAnswer]:
    rows = list(rows)
    models = UsageModel.objects.in_bulk({row.model_id for row in rows})
    features = Feature.objects.in_bulk({row.feature_id for row in rows if row.feature_id is not None})
    unit = catalog.product_by_id(product_id=account.product_id).unit.code
    costs: dict[UUID, dict[str, Any]] = {}
    if ApiKey.Scope.ADMIN_READ in principal.scopes:
        finished = UsageRecord.objects.filter(account_id=account.pk, id__in=[row.id for row in rows])
        ratings = UsageRating.objects.filter(account_id=account.pk, usage_id__in=[row.id for row in rows])
        later = dict(ratings.values_list("usage_id", "cost_nanos"))
        costs = {id_: {"cost": later.get(id_) if cost is None else cost} for id_, cost in finished.values_list("id", "cost_nanos")}
    return [
        RecordAnswer(
            **costs.get(row.id, {}),
            **_finished(account, row) if isinstance(row, UsageRecord) else _under_way(account, row),
            id=usage.public_id(account, row.id, kind="rec"),
            account=account.public_id,
            model=str(models[row.model_id]),
            feature=None if row.feature_id is None else features[row.feature_id].slug,
            user=row.user_ref,
            session=row.session_ref,
            run=row.run_ref,
            hold=row.hold,
            unit=unit,
        )
        for row in rows
    ]


def _finished(account: Account, row: UsageRecord) -> dict[str, Any]:
    return {
        "authorization": None if row.authorized_at is None else usage.public_id(account, row.id),
        "outcome": row.outcome,
        "quantities": charges.quantities(row.quantities),
        "charged": row.price_nanos,
        "waived": row.waived_nanos,
        "event_at": row.event_at,
        "recorded_at": row.recorded_at,
        "counted_at": row.counted_at,
    }


def _under_way(account: Account, row: OpenAuthorization) -> dict[str, Any]:
    return {
        "authorization": usage.public_id(account, row.id),
        "outcome": "authorized" if row.state == OpenAuthorization.State.OPEN else row.state,
        "quantities": charges.quantities(row.quantities if row.captured is None else row.captured),
        "charged": None,
        "waived": 0,
        "event_at": row.created_at,
        "recorded_at": None,
        "counted_at": None,
    }


# Why did it cost this? --------------------------------------------------------------------------------------------------------


class LineAnswer(reads.Answer):
    """One component: ``charge`` is exact, before rounding; it is ``rate`` for ``per_units`` of the component.

    ``cost`` (exact, US dollars) and ``price_row``, the price book row behind it, are for keys with admin:read only.
    """

    component: str
    quantity: int
    rate: str
    per_units: int
    charge: str
    cost: str | None = None
    price_row: int | None = None


class RatingAnswer(reads.Answer):
    """How the price came about: the ``exact`` charge is rounded up once, to a multiple of ``quantum``, and is at least ``minimum``.

    ``price`` is what the stored terms give when they are applied again, ``reproduces`` whether that is what was charged (and waived).
    """

    rate_card: str
    version: int
    mode: str
    exact: str
    quantum: reads.Amount
    minimum: reads.Amount
    price: reads.Amount
    reproduces: bool
    lines: list[LineAnswer] | None = None


class BurntAnswer(reads.Answer):
    """One ledger entry of the charge: what it took from which grant, or added to the debt."""

    seq: int
    kind: LedgerEntry.Kind
    amount: reads.Amount
    debt_change: reads.Amount
    grant: int | None
    source: str | None
    balance_after: reads.Amount


class ReversalAnswer(reads.Answer):
    """When the charge was undone, and how much came back: as credit, or as debt forgiven."""

    at: datetime
    amount: reads.Amount


class StepAnswer(reads.Answer):
    """One sentence of the story; ``parts`` say it component by component, or entry by entry."""

    name: str
    text: str
    parts: list[str]


class SealAnswer(reads.Answer):
    """What was hashed when the charge was written, as it stands now, and the first 128 bits of its SHA-256, as they were stored then."""

    stored: str
    text: str
    holds: bool


class ExplainAnswer(reads.Answer):
    """One charge. ``rating`` is there from visibility ``amount`` on, its ``lines`` with ``full_breakdown`` or admin:read.

    ``reversed`` is set where all of it was given back later. ``holds``: the stored terms, applied again, give what was charged, and the
    record and its entries are what was written; ``differences`` and ``seals`` are for keys with admin:read.
    """

    record: RecordAnswer
    visibility: Product.Visibility
    rating: RatingAnswer | None
    burnt: list[BurntAnswer]
    reversed: ReversalAnswer | None
    steps: list[StepAnswer]
    holds: bool
    differences: list[str] | None = None
    seals: list[SealAnswer] | None = None


class Explain(reads.Read):
    permission_classes = [api.HasScope.of("usage:read")]

    @extend_schema(operation_id="explainRecord", parameters=[_RECORD_ID], responses=ExplainAnswer)
    def get(self, request: Request, record: str) -> Response:
        """One charge by the terms it was promised at: components, rounding, hold, and the grants that it was burnt from."""
        self.asked(request, reads.Query)
        principal = reads.principal(request)
        account, id_ = _named(principal, record)
        with tenancy.acting_as(account=account):
            found = charges.record(account, id_)
            if found is None:
                raise _no_such_record()
            burnt = charges.burnt(found)
        [answer] = _answers(account, [found], principal)
        staff = ApiKey.Scope.ADMIN_READ in principal.scopes
        said = explanation.explain(account=account, record=found, burnt=burnt, staff=staff)
        back = said.charge.reversal
        told = ExplainAnswer(
            record=answer,
            visibility=said.told.visibility,
            rating=None if said.rated is None else _rating(found, said.rated, told=said.told),
            burnt=[
                BurntAnswer(
                    seq=entry.seq,
                    kind=LedgerEntry.Kind(entry.kind),
                    amount=entry.amount,
                    debt_change=entry.debt_delta,
                    grant=entry.grant_id,
                    source=None if grant is None else grant.source,
                    balance_after=entry.balance_after,
                )
                for entry, grant in burnt
            ],
            reversed=None if back is None else ReversalAnswer(at=back.created_at, amount=back.amount),
            steps=[StepAnswer(name=step.name, text=step.text, parts=list(step.parts)) for step in said.steps],
            holds=said.holds,
        )
        return (told.model_copy(update=_proof(said)) if staff else told).response()


def _proof(said: explanation.Explanation) -> dict[str, Any]:
    """What is compared and hashed: with the cost in it, so for staff alone."""
    seals = [SealAnswer(stored=seal.stored.hex, text=seal.text, holds=seal.holds) for seal in said.charge.stored.seals]
    return {"differences": list(said.differences), "seals": seals}


def _rating(record: UsageRecord, rated: charges.Rated, *, told: explanation.Told) -> RatingAnswer:
    answer = RatingAnswer(
        rate_card=rated.rate_card,
        version=rated.version,
        mode=rated.card.mode,
        exact=charges.exact(rated.exact),
        quantum=rated.card.quantum_nanos,
        minimum=rated.card.minimum_nanos,
        price=rated.price,
        reproduces=rated.price == (record.price_nanos or 0) + record.waived_nanos,
    )
    if not told.components:
        return answer
    return answer.model_copy(update={"lines": [_line(line, staff=told.staff) for line in rated.lines]})


def _line(line: rating.Line, *, staff: bool) -> LineAnswer:
    answer = LineAnswer(
        component=line.component,
        quantity=line.quantity,
        rate=charges.exact(line.charge * line.per_units / line.quantity),
        per_units=line.per_units,
        charge=charges.exact(line.charge),
    )
    return answer.model_copy(update={"cost": charges.exact(line.cost), "price_row": line.price_row_id or None}) if staff else answer


# Why was it refused? ----------------------------------------------------------------------------------------------------------


class RefusalAnswer(reads.Answer):
    """The last refusal by one limit, and how many there were in its window since ``first_at``. ``resets_at`` null: no instant is known."""

    layer: str
    meter: str
    reason: str
    count: int
    first_at: datetime
    last_at: datetime
    resets_at: datetime | None
    steps: list[StepAnswer]


class RefusalsAnswer(reads.Answer):
    """The latest first: one for each limit that ever refused something."""

    items: list[RefusalAnswer]


class Refusals(reads.Read):
    permission_classes = [api.HasScope.of("usage:read")]

    @extend_schema(operation_id="listRefusals", parameters=reads.parameters(reads.OfAccount), responses=RefusalsAnswer)
    def get(self, request: Request) -> Response:
        """What was refused, by which limit and figures, what else was asked, when it ends and what would lift it."""
        query = self.asked(request, reads.OfAccount)
        account = self.account(request, query)
        staff = ApiKey.Scope.ADMIN_READ in reads.principal(request).scopes
        with tenancy.acting_as(account=account):
            kept = list(Refusal.objects.filter(account=account).defer("costs"))
        account.product = catalog.product_by_id(product_id=account.product_id)
        told, now = explanation.Told(staff, Product.Visibility(account.product.visibility), UTC), timezone.now()
        return RefusalsAnswer(
            items=[
                RefusalAnswer(
                    layer=refusal.layer,
                    meter=refusal.meter,
                    reason=refusal.reason,
                    count=refusal.count,
                    first_at=refusal.first_at,
                    last_at=refusal.last_at,
                    resets_at=refusal.resets_at,
                    steps=[
                        StepAnswer(name=step.name, text=step.text, parts=list(step.parts))
                        for step in refusal_explanation.explain(refusal=refusal, account=account, told=told, now=now)
                    ],
                )
                for refusal in kept
            ]
        ).response()


# Sums -------------------------------------------------------------------------------------------------------------------------


class ModelSums(reads.Answer):
    model: str
    records: int
    tokens: int
    charged: reads.Amount


class LiftedAnswer(reads.Answer):
    """A limit that staff lifted: it does not count before ``until``."""

    meter: str
    until: datetime


class ThrottleAnswer(reads.Answer):
    """Whether the account as a whole is stopped, by what, and until when (null: until it is lifted; null, too, where it is not stopped).

    ``by`` is ``cost_limit``, ``staff`` or ``guard``, ``meter`` the limit on cost that is reached. It has nothing to do with credits: an
    account may have all of them left.
    """

    throttled: bool
    reason: str | None
    by: Literal["cost_limit", "staff", "guard"] | None
    meter: str | None
    since: datetime | None
    until: datetime | None
    lifted: list[LiftedAnswer]


def _throttle(account: Account, now: datetime) -> ThrottleAnswer:
    """Like the hot path it reads by the account in code alone."""
    standing = throttles.of_account(account=account, now=now)
    stop = standing.stops[0] if standing.stops else None
    return ThrottleAnswer(
        throttled=stop is not None,
        reason=stop.reason if stop else None,
        by=stop.by if stop else None,
        meter=(stop.meter or None) if stop else None,
        since=stop.since if stop else None,
        until=stop.until if stop else None,
        lifted=[LiftedAnswer(meter=row.meter, until=row.window_end) for row in standing.lifted],
    )


class CurrentAnswer(reads.Answer):
    """This billing period: from ``start``, inclusive, to ``end``, exclusive.

    ``charged`` is what its work cost; ``reversed`` what was given back in the period, whatever period it was charged in.
    ``unpriced`` of the records have no price yet.
    """

    account: str
    unit: str
    start: datetime
    end: datetime
    records: int
    unpriced: int
    tokens: int
    charged: reads.Amount
    reversed: reads.Amount
    by_model: list[ModelSums]
    throttle: ThrottleAnswer


class Current(reads.Read):
    permission_classes = [api.HasScope.of("usage:read")]

    @extend_schema(operation_id="currentUsage", parameters=reads.parameters(reads.OfAccount), responses=CurrentAnswer)
    def get(self, request: Request) -> Response:
        """What the account has used in this billing period; without a plan, in this calendar month (UTC)."""
        account = self.account(request, self.asked(request, reads.OfAccount))
        now = timezone.now()
        start, end = _billing_period(account, now)
        with tenancy.acting_as(account=account):
            sums = list(_sums(charges.used(account, start, end).values("model_id")).order_by("-charged", "model_id"))
            given_back = _reversed(account, start, end)
        models = UsageModel.objects.in_bulk({row["model_id"] for row in sums})
        return CurrentAnswer(
            account=account.public_id,
            unit=catalog.product_by_id(product_id=account.product_id).unit.code,
            start=start,
            end=end,
            records=sum(row["records"] for row in sums),
            unpriced=sum(row["unpriced"] for row in sums),
            tokens=sum(row["tokens"] for row in sums),
            charged=sum(row["charged"] for row in sums),
            reversed=given_back,
            by_model=[
                ModelSums(model=str(models[row["model_id"]]), records=row["records"], tokens=row["tokens"], charged=row["charged"])
                for row in sums
            ],
            throttle=_throttle(account, now),
        ).response()


def _billing_period(account: Account, now: datetime) -> tuple[datetime, datetime]:
    """The period of the live subscription that contains ``now``, also while the job that moves it on is late."""
    allowed = subscriptions.allowed(account=account)
    return allowed.period_at(now) if allowed else periods.period_at(datetime(2000, 1, 1, tzinfo=UTC), now)


def _sums(groups: Any) -> Any:
    return groups.annotate(
        records=Count("id"),
        unpriced=Count("id") - Count(charges.CHARGED),
        tokens=Sum(charges.TOKENS),
        charged=Coalesce(Sum(charges.CHARGED), Value(0), output_field=BigIntegerField()),
    )


def _reversed(account: Account, since: datetime, until: datetime) -> int:
    """Credits that came back and debt that was forgiven."""
    entries = LedgerEntry.objects.filter(
        account_id=account.pk,
        unit_id=account.product.unit_id,
        kind=LedgerEntry.Kind.REVERSAL,
        effective_at__gte=since,
        effective_at__lt=until,
    )
    return entries.aggregate(total=Sum(F("amount") - F("debt_delta")))["total"] or 0


class PeriodSums(reads.Answer):
    """From ``start``, inclusive, to ``end``, exclusive."""

    start: datetime
    end: datetime
    records: int
    tokens: int
    charged: reads.Amount


class HistoryAnswer(reads.Answer):
    account: str
    unit: str
    group: str
    periods: list[PeriodSums]


class HistoryQuery(reads.OfAccount, reads.Between):
    group: Literal["month", "day"] = Field("month", description="Calendar months or days, in UTC.")


class History(reads.Read):
    permission_classes = [api.HasScope.of("usage:read")]

    @extend_schema(operation_id="usageHistory", parameters=reads.parameters(HistoryQuery), responses=HistoryAnswer)
    def get(self, request: Request) -> Response:
        """What the account has used, by month (the last twelve unless told) or day (the last thirty), periods without use included."""
        query = self.asked(request, HistoryQuery)
        account = self.account(request, query)
        buckets = _buckets(query, timezone.now())
        trunc = TruncMonth if query.group == "month" else TruncDay
        used = charges.used(account, query.since or buckets[0][0], query.until or buckets[-1][1])
        with tenancy.acting_as(account=account):
            starts = used.annotate(start=trunc(charges.COUNTED_AT, tzinfo=UTC)).values("start")
            found = {row["start"]: row for row in _sums(starts)}
        nothing = {"records": 0, "tokens": 0, "charged": 0}
        sums = ((start, end, found.get(start, nothing)) for start, end in buckets)
        return HistoryAnswer(
            account=account.public_id,
            unit=catalog.product_by_id(product_id=account.product_id).unit.code,
            group=query.group,
            periods=[
                PeriodSums(start=start, end=end, records=row["records"], tokens=row["tokens"], charged=row["charged"])
                for start, end, row in sums
            ],
        ).response()


def _buckets(query: HistoryQuery, now: datetime) -> list[tuple[datetime, datetime]]:
    """Every period that the query touches, oldest first. :raises Problem: 422 where it is empty, or more than ``MAX_BUCKETS``."""
    until = (query.until or now).astimezone(UTC)
    last = (until - timedelta(microseconds=1)).replace(hour=0, minute=0, second=0, microsecond=0)
    first = periods.anniversary(last.replace(day=1), months=-11) if query.group == "month" else last - timedelta(days=29)
    if query.since is not None:
        first = query.since.astimezone(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    if query.group == "month":
        first = first.replace(day=1)
    buckets: list[tuple[datetime, datetime]] = []
    while first < until and len(buckets) <= MAX_BUCKETS:
        after = periods.anniversary(first, months=1) if query.group == "month" else first + timedelta(days=1)
        buckets.append((first, after))
        first = after
    if not 1 <= len(buckets) <= MAX_BUCKETS:
        errors = [{"field": "since", "message": f"Ask for 1 to {MAX_BUCKETS} periods, beginning before now."}]
        raise api.Problem(422, "invalid_request", "Some fields are wrong.", errors=errors)
    return buckets


# Limits -----------------------------------------------------------------------------------------------------------------------


class LayerAnswer(reads.Answer):
    """One layer. ``limit`` null = no limit. Figures are counts; for the layers ``credits`` and ``cost`` (dollars) decimal strings.

    What ``cost`` counts is the operator's own cost: account keys learn whether it is reached and when it resets, not how much it is.
    """

    layer: str
    meter: str | None
    allowed: bool
    mode: str
    limit: int | str | None
    used: int | str | None
    remaining: int | str | None
    resets_at: datetime | None


class LimitsAnswer(reads.Answer):
    """The layers in the order in which authorize asks them, and whether work could start now."""

    account: str
    unit: str
    allowed: bool
    limits: list[LayerAnswer]
    throttle: ThrottleAnswer


class Limits(reads.Read):
    permission_classes = [api.HasScope.of("usage:read")]

    @extend_schema(operation_id="usageLimits", parameters=reads.parameters(reads.OfAccount), responses=LimitsAnswer)
    def get(self, request: Request) -> Response:
        """What the account's limits are, what is used of them and when they reset: the hot path's own decision, without a request."""
        # Not acting as the account: the decision reads the plan's terms too, which no tenant's role may. Like the hot path itself, it is
        # scoped by the account in code alone.
        account = self.account(request, self.asked(request, reads.OfAccount))
        now = timezone.now()
        decision = usage.decide(account=account, ask=None, now=now)
        wholesale = ApiKey.Scope.ADMIN_READ in reads.principal(request).scopes
        return LimitsAnswer(
            account=account.public_id,
            unit=catalog.product_by_id(product_id=account.product_id).unit.code,
            allowed=decision.refusal is None,
            limits=[LayerAnswer(**layer) for layer in layers(decision, wholesale=wholesale)],
            throttle=_throttle(account, now),
        ).response()
