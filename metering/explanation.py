"""One charge in sentences: what was used, at which terms, how it was rounded, what of the hold came back and which credits were burnt.

    explain      the sentences for one reader, and whether the charge is still what was written
    compare      what of a record differs from what its stored terms give when they are applied again

The same sentences stand on the customer's page, on the staff's, in the API and in ``manage.py explain``. A customer is told as much as the
product's visibility allows; what the work cost us, what we add to it and the seal (which would give the cost away) are for staff who read
the margin report alone.

``explain`` reads terms and names, which no tenant's role may: call it after the wall, with a record and entries from behind it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, tzinfo
from decimal import Decimal
from fractions import Fraction
from zoneinfo import ZoneInfo

import structlog

from accounts.models import Account
from accounts.templatetags import amounts
from billing import ledger
from billing.models import Grant, LedgerEntry, Operation, UsageRating
from metering import charges
from metering.models import Feature, UsageModel, UsageRecord
from pricing import catalog, rating
from pricing.models import PriceRow, Product, Unit

DOLLAR = Unit(code="USD", name="US dollar", decimals=2)
log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Step:
    """One sentence of the story. ``parts`` say it component by component, or entry by entry: a page shows them as a table."""

    name: str
    text: str
    parts: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Stored:
    """What no tenant's role may read of a record: its cost and list value (nano-USD), its seals, and when it was rated later."""

    cost_nanos: int | None
    value_nanos: int | None
    seals: tuple[ledger.Seal, ...]
    rated_at: datetime | None


@dataclass(frozen=True, slots=True)
class Told:
    """Who is told, and where: ``visibility`` is the product's, ``zone`` what instants are written in, ``margins`` whether of staff this is
    somebody who reads the margin report."""

    staff: bool
    visibility: Product.Visibility
    zone: tzinfo
    margins: bool = True

    @property
    def costs(self) -> bool:
        """What the work cost us, what we add to it, and the seal, which would give both away."""
        return self.staff and self.margins

    @property
    def components(self) -> bool:
        return self.staff or self.visibility == Product.Visibility.FULL_BREAKDOWN

    @property
    def tokens(self) -> bool:
        return self.staff or self.visibility != Product.Visibility.DEPLETION_ONLY

    @property
    def price(self) -> bool:
        """How the price came about, beside what it is."""
        return self.tokens

    def on(self, instant: datetime) -> str:
        """``1 April 2026, 09:00:00``; staff and machines read UTC, and that it is."""
        local = instant.astimezone(self.zone)
        return f"{local.day} {local:%B %Y, %H:%M:%S}{' UTC' if self.zone is UTC else ''}"


@dataclass(frozen=True, slots=True)
class Charge:
    """All that is known of one charge. ``trouble`` says why nothing could be rated again. Nothing here is kept from anybody yet."""

    account: Account
    product: Product
    record: UsageRecord
    model: str
    feature: str
    unit: Unit
    burnt: Sequence[tuple[LedgerEntry, Grant | None]]
    rated: charges.Rated | None
    rows: dict[int, PriceRow]
    reversal: Operation | None
    stored: Stored
    trouble: str = ""


@dataclass(frozen=True, slots=True)
class Explanation:
    """The sentences, and the rows behind them. ``differences`` is empty where the charge re-derives and is what was written."""

    charge: Charge
    told: Told
    steps: tuple[Step, ...]
    differences: tuple[str, ...]
    rated: charges.Rated | None

    @property
    def holds(self) -> bool:
        return not self.differences


def explain(
    *, account: Account, record: UsageRecord, burnt: Sequence[tuple[LedgerEntry, Grant | None]], staff: bool, zone: tzinfo = UTC,
    margins: bool = True,
) -> Explanation:  # fmt: skip
    """The charge of ``record``, told to ``staff`` (those who read the margin report, or not) or to the account's own people. What does not
    re-derive is logged too.

    ``rated`` is there where the reader may see how the price came about; its lines may be told where ``told.components`` says so.
    """
    charge = _gather(account, record, burnt, staff and margins)
    told = Told(staff, Product.Visibility(charge.product.visibility), zone, margins)
    differences = tuple(_differences(charge))
    if differences:
        log.error("charge does not re-derive", usage=str(record.id), account=account.public_id, differences=differences)
    return Explanation(charge, told, tuple(_steps(charge, told, differences)), differences, charge.rated if told.price else None)


def zone_of(account: Account) -> tzinfo:
    """The time zone that the account's own people read."""
    return ZoneInfo(account.time_zone)


def compare(*, record: UsageRecord, cost_nanos: int | None, value_nanos: int | None, price: int, cost: int, value: int) -> Iterator[str]:
    """What of a priced record is not what its terms give, to the nano. ``cost_nanos`` None: not known here.

    What was waived is part of the price; the list value is cut with it, rounded down.
    """
    charged = record.price_nanos or 0
    expected = value if not record.waived_nanos else value * charged // price if price else 0
    found = (
        ("price", charged + record.waived_nanos, price),
        ("cost", cost_nanos, cost),
        ("list value", value_nanos, expected),
    )
    for name, stored, derived in found:
        if stored is not None and stored != derived:
            yield f"the {name} is {_nanos(stored)}, its terms give {_nanos(derived)}"


# Reading ----------------------------------------------------------------------------------------------------------------------


def _gather(account: Account, record: UsageRecord, burnt: Sequence[tuple[LedgerEntry, Grant | None]], costs: bool) -> Charge:
    product = catalog.product_by_id(product_id=account.product_id)
    model = str(UsageModel.objects.get(pk=record.model_id))
    rated, trouble = None, ""
    try:
        rated = charges.rated(record, model=model)
    except (catalog.NotInCatalog, rating.UnpricedUsage, rating.InvalidQuantity) as error:
        trouble = str(error)
    return Charge(
        account=account,
        product=product,
        record=record,
        model=model,
        feature=str(Feature.objects.get(pk=record.feature_id)) if record.feature_id else "",
        unit=Unit.objects.get(pk=record.unit_id) if record.unit_id else product.unit,
        burnt=burnt,
        rated=rated,
        rows=PriceRow.objects.in_bulk(record.price_ids or ()) if costs else {},
        reversal=charges.reversal(record),
        stored=_stored(record),
        trouble=trouble,
    )


def _stored(record: UsageRecord) -> Stored:
    cost, value = UsageRecord.objects.values_list("cost_nanos", "value_nanos").get(account_id=record.account_id, id=record.id)
    rated_at = None
    if later := UsageRating.objects.filter(account_id=record.account_id, usage_id=record.id).first():
        cost, value, rated_at = later.cost_nanos, later.value_nanos, later.rated_at
    seals = ledger.seals(account_id=record.account_id, usage_ids=[record.id])[record.id]
    return Stored(cost, value, tuple(seals), rated_at)


def _differences(charge: Charge) -> Iterator[str]:
    record, rated = charge.record, charge.rated
    if charge.trouble:
        yield f"the terms that it was rated at cannot be read: {charge.trouble}"
    elif rated is not None:
        stored = charge.stored
        yield from compare(
            record=record,
            cost_nanos=stored.cost_nanos,
            value_nanos=stored.value_nanos,
            price=rated.price,
            cost=rated.cost,
            value=rated.value,
        )
    moved = sum(entry.debt_delta - entry.amount for entry, _ in charge.burnt)
    if record.unit_id is not None and record.price_nanos is not None and moved != record.price_nanos:
        yield f"its entries come to {_nanos(moved)}, charged was {_nanos(record.price_nanos)}"
    for seal in charge.stored.seals:
        if not seal.holds:
            yield f"its seal is {seal.stored.hex}, what is stored gives {seal.now.hex}"


# Saying -----------------------------------------------------------------------------------------------------------------------


def _steps(charge: Charge, told: Told, differences: Sequence[str]) -> Iterator[Step]:
    record, rated, worked = charge.record, charge.rated, charge.record.outcome in charges.USED
    yield Step("work", _work(charge, told, worked))
    if record.authorized_at:
        yield Step("hold", _hold(charge, told, worked))
    if worked and record.price_nanos is None:
        yield Step(
            "unpriced", f"The price of {charge.model} is not known yet. Nothing was charged so far; it will be once the price is set."
        )
    elif worked:
        if charge.stored.rated_at:
            yield Step("later", f"It had no price then. One was set, and it was rated by it on {told.on(charge.stored.rated_at)}.")
        if rated is not None and told.price:
            lines = tuple(_line(charge, told, line) for line in rated.lines) if told.components and (rated.price or told.costs) else ()
            yield Step("terms", _terms(charge, told, rated), lines)
            if rated.card.mode not in ("byo", "included"):
                yield Step("rounding", _rounding(charge, told, rated))
        if record.waived_nanos:
            yield Step("waived", _waived(charge))
        if charge.burnt:
            yield Step("burnt", _burnt(charge), tuple(_movement(charge, told, entry, grant) for entry, grant in charge.burnt))
    if charge.reversal:
        yield Step("reversal", _reversal(charge, told, charge.reversal))
    yield Step("check", _check(charge, told, differences))


def _work(charge: Charge, told: Told, worked: bool) -> str:
    record, at = charge.record, told.on(charge.record.event_at)
    whom = f"for {charge.account.name}" if told.staff else "for you"
    if charge.account.kind == Account.Kind.GUEST:
        whom += ", a guest," if told.staff else ", as a guest,"
    about = (f", in the feature {charge.feature}" if charge.feature else "") + (
        f", for the user {record.user_ref}" if record.user_ref else ""
    )
    if not worked:
        late = " say in time that it had" if record.outcome == UsageRecord.Outcome.TIMED_OUT else ""
        return f"{charge.product.name} was going to use {charge.model} {whom} on {at}, and did not{late}{about}."
    level = f", at the service level {record.service_level}" if record.service_level else ""
    said = [f"{charge.product.name} used {charge.model} {whom} on {at}{about}{level}."]
    used = charges.quantities(record.quantities)
    if told.components:
        said.append(f"It took {_listed([_counted(name, quantity) for name, quantity in used.items()]) or 'nothing'}.")
    elif told.tokens:
        went_in = sum(quantity for name, quantity in used.items() if name in rating.INPUT_COMPONENTS)
        came_out = sum(quantity for name, quantity in used.items() if name in rating.TOKEN_COMPONENTS) - went_in
        said.append(f"It took {went_in:,} tokens in and {came_out:,} tokens out.")
    if record.counted_at:
        said.append(
            f"It was reported on {told.on(record.recorded_at)}, when the billing period that it belongs to had long been closed;"
            " so it counts from then."
        )
    elif not record.authorized_at:
        said.append(f"It was reported on {told.on(record.recorded_at)}.")
    return " ".join(said)


def _hold(charge: Charge, told: Told, worked: bool) -> str:
    record = charge.record
    assert record.authorized_at is not None
    begun = f"Before the work began, on {told.on(record.authorized_at)},"
    if not record.hold or record.unit_id is None:
        return f"{begun} nothing had to be reserved."
    said = f"{begun} {_amount(charge, record.hold)} of {'the' if told.staff else 'your'} credit was reserved for it."
    if record.price_nanos is None:
        return said
    back = record.hold - record.price_nanos
    if back > 0:
        return f"{said} {_amount(charge, back)} of that {'was not needed and ' if worked else ''}came back."
    return f"{said} {'It took more than that.' if back else 'All of it was needed.'}"


def _terms(charge: Charge, told: Told, rated: charges.Rated) -> str:
    card = rated.card
    if card.mode == "byo":
        return f"It ran on {'the account’s' if told.staff else 'your'} own provider key, so it costs nothing here."
    if card.mode == "included":
        return f"{'The' if told.staff else 'Your'} plan includes this use, so it costs nothing."
    said = f"It was priced by the terms that held when it began: rate card {rated.rate_card}, version {rated.version}"
    return f"{said}: {_how(card, charge.model)}." if told.costs else f"{said}."


def _how(card: rating.RateCard, model: str) -> str:
    match card.mode:
        case "credit_rate":
            assert card.tokens_per_credit is not None
            multiplier = card.multipliers.get(model, card.default_multiplier_ppm) or 0
            return f"one credit is {card.tokens_per_credit:,} tokens, and of this model each counts {_times(multiplier)} times"
        case "price_book":
            return "the card's own retail prices"
        case "markup":
            return f"wholesale cost plus a markup of {_percent(card.markups.get(model, card.markup_ppm))}"
    return "wholesale cost, with nothing added"


def _line(charge: Charge, told: Told, line: rating.Line) -> str:
    """``1,234 input tokens × $3 per 1,000,000 (price row 12, valid from 2026-01-01) = $0.003702; with the markup of 50 % $0.005553``."""
    assert charge.rated is not None
    counted, card = _counted(line.component, line.quantity), charge.rated.card
    came_to = _exact(charge.unit, line.charge)
    if not told.costs:
        return f"{counted} × {_exact(charge.unit, line.charge * line.per_units / line.quantity)} per {line.per_units:,} = {came_to}"
    if card.mode == "byo":
        return f"{counted}, on the account's own provider key"
    row = charge.rows.get(line.price_row_id)
    paid = (
        f"{counted} × {_exact(DOLLAR, Fraction(line.price_nanos))} per {line.per_units:,} ({_row(row, line)}) = {_exact(DOLLAR, line.cost)}"
    )
    match card.mode:
        case "included":
            return f"{paid} that it cost; nothing is charged"
        case "markup":
            return f"{paid}; with the markup of {_percent(card.markups.get(charge.model, card.markup_ppm))} {came_to}"
        case "credit_rate" | "price_book":
            return f"{paid} that it cost; charged at {came_to}"
    return f"{paid}; charged at that"


def _row(row: PriceRow | None, line: rating.Line) -> str:
    """The price book row behind a line, and since when it holds."""
    if row is None:
        return f"price row {line.price_row_id}, which is gone"
    valid = row.valid
    until = f" until {valid.upper.astimezone(UTC):%Y-%m-%d}" if valid.upper else ""
    above = f", contexts above {row.context_above:,} tokens" if row.context_above else ""
    level = f", {row.service_level}" if row.service_level != "standard" else ""
    gone = f", withdrawn on {row.withdrawn_at.astimezone(UTC):%Y-%m-%d}" if row.withdrawn_at else ""
    return f"price row {row.pk}, valid from {valid.lower.astimezone(UTC):%Y-%m-%d}{until}{above}{level}{gone}"


def _rounding(charge: Charge, told: Told, rated: charges.Rated) -> str:
    card, sum_ = rated.card, _exact(charge.unit, rated.exact)
    quantum, price = _amount(charge, card.quantum_nanos), _amount(charge, rated.price)
    if not rated.price:
        return "That comes to nothing, so nothing is charged."
    if rated.price == card.minimum_nanos and rated.exact < card.minimum_nanos:
        return f"A use costs at least {price}: that is more than the {sum_} that it comes to."
    said = "Together that is" if told.components else "What it took comes to"
    if rated.exact == rated.price:
        return f"{said} {price}. That is the price: nothing had to be rounded."
    return f"{said} {sum_}. The total is rounded up, once, to a multiple of {quantum}: {price}."


def _waived(charge: Charge) -> str:
    record = charge.record
    let_go = f"{_amount(charge, record.waived_nanos)} of the price was let go"
    if charge.stored.rated_at:
        return f"{let_go}: it was rated too late to be charged."
    if record.hold and record.price_nanos == record.hold:
        return f"{let_go}: no more than was reserved is charged."
    return f"{let_go}: it was not charged."


def _burnt(charge: Charge) -> str:
    taken = _amount(charge, charge.record.price_nanos or 0)
    owed = sum(entry.debt_delta for entry, _ in charge.burnt)
    if not owed:
        return f"{taken} was taken:"
    return f"{taken} was taken, as far as there was credit; the rest of {_amount(charge, owed)} is owed:"


def _movement(charge: Charge, told: Told, entry: LedgerEntry, grant: Grant | None) -> str:
    after = f"balance {_amount(charge, entry.balance_after)} after it"
    if grant is None:
        return f"entry {entry.seq:,}: {_amount(charge, entry.debt_delta)} of debt, {after}"
    source = amounts.source_name(grant.source)
    cash = f", behind it {_exact(DOLLAR, Fraction(entry.cash_nanos))} of cash" if told.staff and grant.source == "purchased" else ""
    return f"entry {entry.seq:,}: {_amount(charge, -entry.amount)} from {source} (grant {grant.pk}){cash}, {after}"


def _reversal(charge: Charge, told: Told, act: Operation) -> str:
    said = f"On {told.on(act.created_at)} the whole charge of {_amount(charge, act.amount)} was given back"
    return f"{said} by {act.actor}: {act.reason}" if told.staff else f"{said}."


def _check(charge: Charge, told: Told, differences: Sequence[str]) -> str:
    support = charge.product.support_email or "support"
    if differences:
        return f"DOES NOT RE-DERIVE: {'; '.join(differences)}." if told.costs else f"This does not re-derive. Please tell {support}."
    rated = charge.rated
    if not told.costs:
        again = "Applied again, the stored terms give the same amount, and n" if rated else "N"
        return f"{again}othing of the record has changed since it was written."
    seals = " and ".join(seal.stored.hex for seal in charge.stored.seals)
    sealed = f"What is stored gives the seal that was written with it, {seals}."
    if rated is None:
        return sealed
    price, cost, value = _amount(charge, rated.price), _exact(DOLLAR, Fraction(rated.cost)), _exact(DOLLAR, Fraction(rated.value))
    return (
        f"Applied again, the stored terms give the price {price}, the cost {cost} and the list value {value}: equal to the nano. {sealed}"
    )


# Words ------------------------------------------------------------------------------------------------------------------------


def _amount(charge: Charge, nanos: int) -> str:
    """Every digit, with its unit."""
    unit = charge.unit
    return amounts.with_unit(amounts.exact(nanos, decimals=unit.decimals), unit=unit, negative=nanos < 0)


def _exact(unit: Unit, nanos: Fraction) -> str:
    return amounts.with_unit(charges.exact(nanos), unit=unit)


def _nanos(nanos: int) -> str:
    return charges.exact(Fraction(nanos))


def _counted(component: str, quantity: int) -> str:
    """``1,234 input tokens``, ``1 image``."""
    name = component.replace("_", " ")
    return f"{quantity:,} {name.removesuffix('s') if quantity == 1 else name}"


def _listed(parts: Sequence[str]) -> str:
    return " and ".join([", ".join(parts[:-1]), parts[-1]] if len(parts) > 1 else parts)


def _percent(ppm: int) -> str:
    return f"{Decimal(ppm).scaleb(-4).normalize():f} %"


def _times(ppm: int) -> str:
    return f"{Decimal(ppm).scaleb(-6).normalize():f}"
