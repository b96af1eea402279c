"""Providers' bills: files in, held against what we recorded for the same days, and kept with what was found.

    prepared       files as one bill, read and checked; nothing is stored
    compared       a bill against our record of now; nothing is stored
    import_        keeps the bill and its comparison, and proposes prices where a row is guilty
    compare_again  the same bill against our record of now
    threshold      how far a bill may be off, parts per million of it

What we recorded comes from the usage records of the bill's days (:mod:`analytics.bill_records`). What differs is split by
:mod:`analytics.bill_variance` and explained by :mod:`analytics.bill_findings`. Days are UTC.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from fractions import Fraction
from hashlib import sha256
from typing import Final, NamedTuple

from django.contrib.admin.models import ADDITION, CHANGE, LogEntry
from django.contrib.contenttypes.models import ContentType
from django.db import IntegrityError, transaction

from accounts.models import User
from analytics import bill_files, bill_findings, bill_records, bill_variance
from analytics.bill_files import UnreadableBill
from analytics.bill_findings import MILLION, Finding, Kind
from analytics.bill_models import BillComparison, BillFinding, BillLine, BillMapping, BillVariance
from analytics.bill_records import midnight
from analytics.bill_variance import Billed, Key, Variance
from analytics.models import AlertRule, ProviderBill
from metering.models import UsageModel
from pricing import price_import
from pricing.models import PriceProposal, PriceRow
from pricing.rating import NANOS, PPM

#: R-057: recorded cost is within 5 % of what the provider bills, unless the alert rule says otherwise.
GREEN_PPM: Final = 50_000
MAX_FILES: Final = 8
#: What a row can hold.
_MOST: Final = 2**63 - 1


class AlreadyImported(Exception):
    """These very files were imported before. ``bill`` is what came of them."""

    def __init__(self, bill: ProviderBill) -> None:
        self.bill = bill
        super().__init__(f"These files were imported on {bill.entered_at:%Y-%m-%d} as the bill of {bill}.")


class BillKey(NamedTuple):
    """What a line of a bill is of, by the bill's own names."""

    day: date
    model: str
    component: str
    level: str
    other: bool


@dataclass(slots=True)
class Said:
    """What a bill says of one key, its finer lines added up. None: nothing."""

    quantity: int | None = None
    amount_nanos: int | None = None
    precision_nanos: int = 0


@dataclass(frozen=True, slots=True)
class Prepared:
    """A bill as its files have it. ``until`` is the first day that it does not cover."""

    provider: str
    since: date
    until: date
    source: str
    digest: str
    lines: Mapping[BillKey, Said]

    @property
    def billed_nanos(self) -> int:
        return sum(said.amount_nanos or 0 for key, said in self.lines.items() if not key.other)

    @property
    def others(self) -> list[tuple[str, int]]:
        """Credits, discounts, taxes and fees by their words, the largest first."""
        sums: dict[str, int] = defaultdict(int)
        for key, said in self.lines.items():
            if key.other:
                sums[key.model] += said.amount_nanos or 0
        return sorted(sums.items(), key=lambda one: (-abs(one[1]), one[0]))

    @property
    def other_nanos(self) -> int:
        return sum(nanos for _, nanos in self.others)


@dataclass(frozen=True, slots=True)
class Compared:
    """What was found. Sums are nano-USD; ``rest_nanos`` is what is in no finding."""

    variances: tuple[Variance, ...]
    findings: tuple[Finding, ...]
    threshold_ppm: int

    @property
    def billed_nanos(self) -> int:
        return sum(one.billed_nanos for one in self.variances)

    @property
    def recorded_nanos(self) -> int:
        return sum(one.recorded_nanos for one in self.variances)

    @property
    def volume_nanos(self) -> int:
        return sum(one.volume_nanos for one in self.variances)

    @property
    def price_nanos(self) -> int:
        return sum(one.price_nanos for one in self.variances)

    @property
    def unsplit_nanos(self) -> int:
        return sum(one.unsplit_nanos for one in self.variances)

    @property
    def sentence(self) -> str:
        return verdict(self.billed_nanos, self.recorded_nanos, self.threshold_ppm)


def threshold() -> int:
    """What the alert rule on cost accuracy allows, in parts per million of the bill."""
    ppm = AlertRule.objects.filter(slug="cost-accuracy", metric="cost_accuracy").values_list("threshold", flat=True).first()
    return GREEN_PPM if ppm is None else ppm


def green(billed_nanos: int, recorded_nanos: int, threshold_ppm: int) -> bool:
    """Whether our record is within the threshold of the bill, either way."""
    return PPM * abs(billed_nanos - recorded_nanos) <= threshold_ppm * billed_nanos


def verdict(billed_nanos: int, recorded_nanos: int, threshold_ppm: int) -> str:
    """The first sentence of a result."""
    said = f"{bill_findings.dollars(billed_nanos)} billed, {bill_findings.dollars(recorded_nanos)} recorded"
    allowed = f"±{_percent(Fraction(threshold_ppm, PPM))}"
    difference = billed_nanos - recorded_nanos
    if not difference:
        return f"Our record is the bill, to the nano: {said}."
    way = "below" if difference > 0 else "above"
    off = f"{_percent(Fraction(abs(difference), billed_nanos))} {way} the bill" if billed_nanos else f"{way} a bill of nothing"
    if green(billed_nanos, recorded_nanos, threshold_ppm):
        return f"Our record is {off}, within {allowed}: {said}."
    return f"Our record is {off}, and may be off by {allowed}: {said}."


def _percent(share: Fraction) -> str:
    tenths = round(share * 1000)
    return f"{tenths / 10:.1f} %".replace(".0 %", " %") if tenths else "under 0.1 %"


# Files in ---------------------------------------------------------------------------------------------------------------------------


def prepared(*, files: Sequence[tuple[str, bytes]], provider: str, mapping: BillMapping | None, today: date) -> Prepared:
    """``files`` (name, content) as one bill: costs, with the usage export beside them where the costs state no quantities.

    :raises UnreadableBill: no file, too many, one twice, one that cannot be read, or none with amounts.
    """
    if not 0 < len(files) <= MAX_FILES:
        raise UnreadableBill([f"Give 1 to {MAX_FILES} files."])
    digests = [sha256(content).hexdigest() for _, content in files]
    if len(set(digests)) < len(digests):
        raise UnreadableBill(["One file is there twice."])
    lines: dict[BillKey, Said] = {}
    exports: list[str] = []
    counted: set[str] = set()
    bills = []
    for name, content in files:
        try:
            bills.append(bill_files.read(content=content, provider=provider, today=today, columns=_columns(mapping)))
        except UnreadableBill as error:
            raise UnreadableBill([f"{name}: {problem}" for problem in error.problems]) from None
        exports.append(f"{bills[-1].export}: {name}")
        counted |= {line.model for line in bills[-1].lines if line.amount_nanos is None}
    for bill in bills:
        for line in bill.lines:
            said = lines.setdefault(BillKey(line.day, line.model, line.component, line.level, line.other), Said())
            if line.amount_nanos is not None:
                said.amount_nanos = (said.amount_nanos or 0) + line.amount_nanos
                said.precision_nanos += bill.precision_nanos
            if line.quantity is not None and (line.amount_nanos is None or line.model not in counted):
                said.quantity = (said.quantity or 0) + line.quantity
    amounts = [key.day for key, said in lines.items() if said.amount_nanos is not None]
    if not amounts:
        raise UnreadableBill(["The files have quantities and no amounts. Add the costs export of the same days."])
    days = [key.day for key in lines]
    if max(days) - min(days) >= timedelta(days=bill_files.MAX_DAYS):
        raise UnreadableBill([f"The files go from {min(days)} to {max(days)}; a bill has at most {bill_files.MAX_DAYS} days."])
    if sum(abs(said.amount_nanos or 0) for said in lines.values()) > _MOST:
        raise UnreadableBill([f"The files come to more than {bill_findings.dollars(_MOST)}."])
    digest = digests[0] if len(digests) == 1 else sha256("".join(sorted(digests)).encode()).hexdigest()
    return Prepared(provider, min(days), max(days) + timedelta(days=1), ", ".join(exports)[:300], digest, lines)


def _columns(mapping: BillMapping | None) -> bill_files.Columns | None:
    if mapping is None:
        return None
    return bill_files.Columns(
        day=mapping.day_column, model=mapping.model_column, amount=mapping.amount_column, component=mapping.component_column,
        quantity=mapping.quantity_column, currency=mapping.currency_column, day_format=mapping.day_format, delimiter=mapping.delimiter,
        decimal_comma=mapping.decimal_comma, quantity_scale=mapping.quantity_scale, components=mapping.components,
    )  # fmt: skip


# Comparing --------------------------------------------------------------------------------------------------------------------------


def compared(*, provider: str, since: date, until: date, lines: Mapping[BillKey, Said]) -> Compared:
    """A bill's ``lines`` against what we recorded from ``since`` up to but without ``until``.

    :raises UnreadableBill: its quantities at our prices come to more than an amount can hold.
    """
    models = dict(UsageModel.objects.filter(provider=provider).values_list("pk", "name"))
    groups = bill_records.groups(since=since, until=until, models=list(models))
    book = list(
        PriceRow.objects.filter(provider=provider, context_above=0, withdrawn_at=None, valid__overlap=(midnight(since), midnight(until)))
    )
    of_bill, of_record = bill_variance.paired(
        billed=(key.model for key in lines if not key.other),
        recorded=(models[group.model_id] for group in groups),
        book={row.model for row in book} | set(models.values()),
    )
    recorded, evidence = bill_records.recorded(groups=groups, names={pk: of_record.get(name, name) for pk, name in models.items()})
    variances = bill_variance.compare(
        billed=_billed(lines, of_bill), recorded=recorded, book=lambda key: bill_records.of_book(book=book, key=key)
    )
    for of in ("volume_nanos", "price_nanos", "recorded_nanos", "quantity", "unpriced"):
        if sum(abs(getattr(one, of)) for one in variances) > _MOST:
            raise UnreadableBill(["Its quantities at our prices come to more than an amount can hold: they cannot be meant so."])
    names = {*of_bill.values(), *of_record.values()}
    ids: dict[str, list[int]] = defaultdict(list)
    for pk, name in models.items():
        ids[of_record.get(name, name)].append(pk)
    bill_records.look_for_duplicates(variances=variances, ids=ids, evidence=evidence)
    findings = bill_findings.diagnose(variances=variances, known=names, evidence=evidence)
    return Compared(tuple(variances), tuple(findings), threshold())


def _billed(lines: Mapping[BillKey, Said], names: Mapping[str, str]) -> list[Billed]:
    """Amounts and quantities of one model under its one name, whichever file they came from; ours to look at, so without the others."""
    sums: dict[Key, Said] = {}
    for line, one in lines.items():
        if line.other:
            continue
        said = sums.setdefault(Key(line.day, names.get(line.model, line.model), line.component, line.level), Said())
        if one.quantity is not None:
            said.quantity = (said.quantity or 0) + one.quantity
        if one.amount_nanos is not None:
            said.amount_nanos = (said.amount_nanos or 0) + one.amount_nanos
        said.precision_nanos += one.precision_nanos
    return [Billed(key, said.quantity, said.amount_nanos or 0, said.precision_nanos) for key, said in sums.items()]


# Keeping ----------------------------------------------------------------------------------------------------------------------------


@transaction.atomic
def import_(*, bill: Prepared, actor: str, user: User | None, now: datetime) -> BillComparison:
    """Keeps ``bill`` with its lines and its comparison of now; a guilty price row gets a pending proposal. One transaction, all or nothing.

    :param user: whose line it is in the audit log; None where a command does it, which is named as ``actor`` alone.
    :raises AlreadyImported: the same files were imported before.
    """
    try:
        with transaction.atomic():
            kept = ProviderBill.objects.create(
                provider=bill.provider, since=bill.since, until=bill.until, billed_nanos=bill.billed_nanos, other_nanos=bill.other_nanos,
                source=bill.source, digest=bill.digest, entered_by=actor, entered_at=now,
            )  # fmt: skip
    except IntegrityError:
        before = ProviderBill.objects.filter(digest=bill.digest).first()
        if before is None:
            raise
        raise AlreadyImported(before) from None
    BillLine.objects.bulk_create(
        (
            BillLine(
                bill=kept, **key._asdict(), quantity=said.quantity, amount_nanos=said.amount_nanos, precision_nanos=said.precision_nanos
            )
            for key, said in bill.lines.items()
        ),
        batch_size=1000,
    )
    comparison = _keep(kept, compared(provider=bill.provider, since=bill.since, until=bill.until, lines=bill.lines), actor, now)
    _log(kept, user, ADDITION, f"Imported from {bill.source}.", now)
    return comparison


@transaction.atomic
def compare_again(*, bill: ProviderBill, actor: str, user: User, now: datetime) -> BillComparison:
    """A new comparison of an imported bill: usage came late, was rated, or prices changed. The ones before stay."""
    lines = {
        BillKey(line.day, line.model, line.component, line.level, line.other): Said(line.quantity, line.amount_nanos, line.precision_nanos)
        for line in bill.lines.all()
    }
    comparison = _keep(bill, compared(provider=bill.provider, since=bill.since, until=bill.until, lines=lines), actor, now)
    _log(bill, user, CHANGE, "Compared again.", now)
    return comparison


def _keep(bill: ProviderBill, found: Compared, actor: str, now: datetime) -> BillComparison:
    comparison = BillComparison.objects.create(
        bill=bill, compared_at=now, compared_by=actor, recorded_nanos=found.recorded_nanos, volume_nanos=found.volume_nanos,
        price_nanos=found.price_nanos, unsplit_nanos=found.unsplit_nanos, threshold_ppm=found.threshold_ppm,
    )  # fmt: skip
    BillVariance.objects.bulk_create(
        (
            BillVariance(
                comparison=comparison, **one.key._asdict(), billed_quantity=one.billed_quantity, billed_nanos=one.billed_nanos,
                quantity=one.quantity, unpriced_quantity=one.unpriced, recorded_nanos=one.recorded_nanos, volume_nanos=one.volume_nanos,
                price_nanos=one.price_nanos, unsplit_nanos=one.unsplit_nanos,
            )
            for one in found.variances
        ),
        batch_size=1000,
    )  # fmt: skip
    for finding in found.findings:
        nanos, units = _price(finding, MILLION)
        BillFinding.objects.create(
            comparison=comparison, kind=finding.kind.value, model=finding.model, component=finding.component, level=finding.level,
            first_day=finding.first_day, last_day=finding.last_day, amount_nanos=finding.amount_nanos, text=finding.text,
            price_rows=[row.id for row in finding.rows], implied_nanos=nanos, implied_units=units, proposed=_propose(bill, finding, now),
        )  # fmt: skip
    return comparison


def _propose(bill: ProviderBill, finding: Finding, now: datetime) -> str:
    """A pending proposal for the one row that is guilty, from its approval on; what became of it, in words."""
    if finding.kind != Kind.PRICE:
        return ""
    if len(finding.rows) != 1:
        return "No price is proposed: several rows took part."
    row = PriceRow.objects.get(pk=finding.rows[0].id)
    identity = {
        "provider": row.provider, "model": row.model, "component": row.component, "context_above": row.context_above,
        "service_level": row.service_level,
    }  # fmt: skip
    current = PriceRow.objects.filter(**identity, withdrawn_at=None, valid__contains=now).first()
    if (current or row).catalog:
        return f"The catalog of {(current or row).catalog} carries this price: change its file."
    price_nanos, per_units = _price(finding, row.per_units)
    if price_nanos is None or per_units is None:
        return "No price is proposed: it is no price that a list would have."
    if current and current.price_nanos * per_units == price_nanos * current.per_units:
        return "The price book says so by now."
    proposals = PriceProposal.objects.filter(**identity)
    for one in proposals.filter(state__in=[PriceProposal.State.PENDING, PriceProposal.State.REJECTED], valid_from=None):
        if one.state == PriceProposal.State.PENDING:
            return "A price proposal for it is waiting already."
        same = one.price_nanos * per_units == price_nanos * one.per_units
        if same and price_import.stands(one, PriceRow.objects.filter(**identity, withdrawn_at=None)):
            return "This price was proposed and rejected before."
    PriceProposal.objects.create(
        **identity, price_nanos=price_nanos, per_units=per_units, previous=current, proposed_at=now,
        source=f"bill of {bill.provider}, {bill.since} to {bill.until - timedelta(days=1)}",
    )  # fmt: skip
    return "A price proposal is waiting."


def _price(finding: Finding, per_units: int) -> tuple[int | None, int | None]:
    """The price that a finding implies: nanos for so many units, or for as many more as make them whole."""
    if finding.implied is None:
        return None, None
    nanos, more = (Fraction(finding.implied) * per_units * NANOS).as_integer_ratio()
    return (nanos, per_units * more) if max(nanos, per_units * more) <= _MOST else (None, None)


def _log(bill: ProviderBill, user: User | None, flag: int, message: str, now: datetime) -> None:
    if user is not None:
        LogEntry.objects.create(
            user=user, content_type=ContentType.objects.get_for_model(ProviderBill), object_id=str(bill.pk), object_repr=str(bill)[:200],
            action_flag=flag, change_message=message, action_time=now,
        )  # fmt: skip
