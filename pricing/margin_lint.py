"""What a thing on sale earns at best, as expected and at worst, in sentences that a pocket calculator can follow. Pure: no database.

    rates      what one unit of the wallet costs us under a rate card, model by model and in the expected mix
    credit     a finding about credit that is sold for a price and used up: a pack, or the credit that a plan includes
    at_limit   a finding about a plan whose customer reaches the limit on cost
    cap        limits that a "cap" would raise
    refused    which findings a change may not bring about alone: below the floor, and worse than before

Amounts are exact dollars (:class:`fractions.Fraction`); nothing is rounded but in the sentences. A margin is what is left of the price
after the payment fee and the cost, as a share of the price. All three cases take it that everything sold is used: *best* on the model
that costs us least for a unit of credit, *worst* on the one that costs most, *expected* in the mix of models that customers use.
Rounding up to whole credits earns a little on top and is left out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction

from pricing import rating

#: Large enough for any split in percent, small enough for no provider's price of long contexts.
_REQUEST_TOKENS = 100_000
ANY_MODEL = "any model"
MIX = "the mix"
NO_COST = frozenset({"byo", "included"})


class NoRate(Exception):
    """What a unit of credit costs cannot be said. The message says what is missing."""


@dataclass(frozen=True, slots=True)
class Fee:
    """What the payment provider keeps of a payment: a share, and so much of each."""

    share: Fraction
    each: Fraction

    def of(self, price: Fraction) -> Fraction:
        return self.share * price + self.each if price else Fraction(0)

    def says(self, price: Fraction) -> str:
        return f"Payment fee: {plain(self.share * 100)} % of {money(price)} + {money(self.each)} = {money(self.of(price))}."


@dataclass(frozen=True, slots=True)
class Mix:
    """Which models customers use: tokens of each, and how much of them is input. ``source`` says where that comes from, as a sentence."""

    tokens: Mapping[str, int]
    input_share: Fraction
    source: str


@dataclass(frozen=True, slots=True)
class Rate:
    """What one unit of the wallet costs us, in dollars. ``how`` is the arithmetic with ``{credit}`` and ``{cost}`` in it."""

    model: str
    cost: Fraction
    how: str
    basis: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Rates:
    best: Rate
    expected: Rate
    worst: Rate
    assumptions: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Case:
    """One way in which it may go, in dollars."""

    name: str
    model: str
    price: Fraction
    fee: Fraction
    cost: Fraction
    says: tuple[str, ...]

    @property
    def margin(self) -> Fraction | None:
        """After the fee; None where nothing is paid."""
        return (self.price - self.fee - self.cost) / self.price if self.price else None

    @property
    def before_fee(self) -> Fraction | None:
        return (self.price - self.cost) / self.price if self.price else None


@dataclass(frozen=True, slots=True)
class Finding:
    """``offer`` is its path in the catalog file (``packs.large``), ``about`` what of it: ``credit``, ``included credit``, ``cost limit``,
    ``cap``. ``cases`` are best, expected and worst; empty where ``unknown`` says why nothing can be computed."""

    offer: str
    about: str
    name: str
    card: str = ""
    cases: tuple[Case, ...] = ()
    target: Fraction | None = None
    floor: Fraction | None = None
    assumptions: tuple[str, ...] = ()
    change: tuple[str, ...] = ()
    unknown: str = ""

    @property
    def key(self) -> tuple[str, str, str]:
        return self.offer, self.about, self.card

    @property
    def best(self) -> Case:
        return self.cases[0]

    @property
    def expected(self) -> Case:
        return self.cases[1]

    @property
    def worst(self) -> Case:
        return self.cases[-1]

    @property
    def margin(self) -> Fraction | None:
        """The worst one, which is held against the floor."""
        return self.worst.margin if self.cases else None

    @property
    def is_below_floor(self) -> bool:
        return self.floor is not None and self.margin is not None and self.margin < self.floor

    @property
    def is_below_target(self) -> bool:
        return self.target is not None and self.margin is not None and self.margin < self.target

    @property
    def is_loss(self) -> bool:
        return self.margin is not None and self.margin < 0

    @property
    def different(self) -> tuple[Case, ...]:
        """The cases, each arithmetic once; the worst first."""
        found: dict[tuple[str, ...], Case] = {}
        for case in reversed(self.cases):
            found.setdefault(case.says, case)
        return tuple(found.values())

    @property
    def headline(self) -> str:
        """``Enterprise Pack at the rate card standard: −3.2 % at worst, below the floor of 0 %.``"""
        where = f"{self.name}{f' at the rate card {self.card}' if self.card else ''}"
        if self.unknown:
            return f"{where}: {self.unknown}"
        if self.margin is None:
            return f"{where}: given away, up to {money(self.worst.cost)} of cost."
        bound = ""
        if self.is_below_floor:
            bound = f", below the floor of {percent(self.floor, 0)}"
        elif self.is_below_target:
            bound = f", below the target of {percent(self.target, 0)}"
        return f"{where}: {percent(self.margin)} at worst{bound}."


# What a unit of credit costs --------------------------------------------------------------------------------------------------


def rates(*, card: rating.RateCard, books: Mapping[str, rating.Book], mix: Mix | None) -> Rates:
    """What one unit of the wallet costs under this card. The models looked at are those that the card names and those of the mix.

    :raises NoRate: no model that could be used has a price upstream, or the card charges nothing.
    """
    if card.mode in NO_COST:
        raise NoRate("what it pays for is not charged to credit.")
    if card.mode in ("markup", "pass_through"):
        return _marked_up(card, mix)
    rated, missing = {}, []
    for model in dict.fromkeys((*card.multipliers, *card.retail, *(mix.tokens if mix else ()))):
        try:
            rated[model] = _rated(card, books, model, mix.input_share if mix else _INPUT_SHARE)
        except rating.UnpricedUsage:
            missing.append(model)
    if not rated:
        raise NoRate("no model that its rate card names, or that is expected, has a price in the price book.")
    one = {model: _rate_of(card, model, cost, charge, basis) for model, (cost, charge, basis) in rated.items()}
    best, worst = min(one.values(), key=lambda rate: rate.cost), max(one.values(), key=lambda rate: rate.cost)
    assumptions = [_looked_at(len(one), missing)]
    used = [model for model in (mix.tokens if mix else ()) if model in rated]
    if mix is None or not used:
        expected = worst
        assumptions.append("Which models are used is not known: expected is taken as the worst.")
    else:
        expected = one[used[0]] if len(used) == 1 else _mixed(card, mix, {model: rated[model] for model in used})
        assumptions.append(mix.source)
    assumptions.append(f"{plain((mix.input_share if mix else _INPUT_SHARE) * 100)} % of the tokens are input, the rest is output.")
    return Rates(best, expected, worst, tuple(assumptions))


_INPUT_SHARE = Fraction(3, 5)


def _looked_at(count: int, missing: Sequence[str]) -> str:
    said = f"Looked at: the {count} priced model{'' if count == 1 else 's'} that the rate card names or that are expected."
    return f"{said} Without a price, and so refused at use: {', '.join(missing)}." if missing else said


def _marked_up(card: rating.RateCard, mix: Mix | None) -> Rates:
    value = Fraction(card.credit_value_nanos, rating.NANOS)

    def rate(model: str, ppm: int) -> Rate:
        factor = 1 + Fraction(ppm, rating.PPM)
        markup = f"{plain(Fraction(ppm, 10_000))} % markup" if ppm else "passed on at cost"
        each = "" if value == 1 else f" × {money(value)}"
        return Rate(model, value / factor, f"{{credit}} of credit{each} ÷ {plain(factor)} ({markup}) = {{cost}} upstream.")

    usual = rate(ANY_MODEL if not card.markups else "any other model", card.markup_ppm)
    own = {model: rate(model, ppm) for model, ppm in card.markups.items()}
    every = [usual, *own.values()]
    best, worst = min(every, key=lambda one: one.cost), max(every, key=lambda one: one.cost)
    if best.cost == worst.cost:
        return Rates(usual, usual, usual, ("Every model earns the same: the price is its cost and the markup.",))
    if mix is None:
        return Rates(best, worst, worst, ("Which models are used is not known: expected is taken as the worst.",))
    # Credit is burnt at cost × (1 + markup); without the cost of each model the tokens stand for it.
    total = sum(mix.tokens.values())
    cost = sum((own.get(model, usual).cost * tokens for model, tokens in mix.tokens.items()), Fraction(0)) / total
    expected = Rate(MIX, cost, f"{{credit}} of credit × {money(cost)} a unit, by the mix = {{cost}} upstream.")
    return Rates(best, expected, worst, (mix.source, "Credit is taken to be burnt on each model as its tokens are."))


def _rated(
    card: rating.RateCard, books: Mapping[str, rating.Book], model: str, input_share: Fraction
) -> tuple[Fraction, Fraction, tuple[str, ...]]:
    """Cost in dollars and charge in units of the wallet of a million tokens, and the sentences behind the cost."""
    quantity = int(_REQUEST_TOKENS * input_share)
    quantities = {"input_tokens": quantity, "output_tokens": _REQUEST_TOKENS - quantity}
    book = books.get(model) or rating.compile_book(model=model, prices=())
    lines = rating.explain(card=card, book=book, model=model, quantities=quantities)
    scale = Fraction(10**6, _REQUEST_TOKENS * rating.NANOS)
    cost, charge = (sum((part(line) for line in lines), Fraction(0)) * scale for part in (_cost, _charge))
    if not charge:
        raise rating.UnpricedUsage(model=model, components=(), missing="charge")
    parts = " + ".join(
        f"{plain(Fraction(line.quantity, _REQUEST_TOKENS))} × {money(Fraction(line.price_nanos * 10**6, line.per_units * rating.NANOS))}"
        for line in lines
    )
    return cost, charge, (f"A million tokens on {model}, input and output by their share: {parts} = {money(cost)}.",)


def _cost(line: rating.Line) -> Fraction:
    return line.cost


def _charge(line: rating.Line) -> Fraction:
    return line.charge


def _rate_of(card: rating.RateCard, model: str, cost: Fraction, charge: Fraction, basis: tuple[str, ...]) -> Rate:
    if card.mode == "credit_rate":
        multiplier = Fraction(card.multipliers.get(model) or card.default_multiplier_ppm or rating.PPM, rating.PPM)
        tokens = f"{card.tokens_per_credit:,} tokens" + (f" ÷ {plain(multiplier)} (multiplier)" if multiplier != 1 else "")
        how = f"{{credit}} × {tokens} × {money(cost)} per million = {{cost}} upstream."
    else:
        how = f"{{credit}} of credit × {money(cost)} ÷ {money(charge)} (what a million tokens costs ÷ sells for) = {{cost}} upstream."
    return Rate(model, cost / charge, how, basis)


def _mixed(card: rating.RateCard, mix: Mix, rated: Mapping[str, tuple[Fraction, Fraction, tuple[str, ...]]]) -> Rate:
    total = sum(mix.tokens[model] for model in rated)
    cost = sum((each * mix.tokens[model] for model, (each, _, _) in rated.items()), Fraction(0)) / total
    charge = sum((each * mix.tokens[model] for model, (_, each, _) in rated.items()), Fraction(0)) / total
    unit = "credits" if card.mode == "credit_rate" else "of credit"
    shares = "; ".join(f"{model} {percent(Fraction(mix.tokens[model], total))}" for model in rated)
    basis = [line for _, _, lines in rated.values() for line in lines]
    basis.append(f"In the mix ({shares}) a million tokens costs {money(cost)} and burns {plain(charge)} {unit}.")
    return Rate(MIX, cost / charge, f"{{credit}} × {money(cost)} ÷ {plain(charge)} = {{cost}} upstream.", tuple(basis))


# Findings ---------------------------------------------------------------------------------------------------------------------


def credit(
    *, offer: str, about: str, name: str, card: str, price: Fraction, amount: Fraction, shown: Callable[[Fraction], str], rates: Rates,
    fee: Fee, target: Fraction | None, floor: Fraction | None, assumptions: Iterable[str] = (),
) -> Finding:  # fmt: skip
    """Credit of ``amount`` units, sold for ``price`` dollars and wholly used. ``shown`` writes an amount of the wallet's unit."""

    def case(which: str, rate: Rate) -> Case:
        cost = amount * rate.cost
        steps = (*rate.basis, _capital(rate.how.format(credit=shown(amount), cost=money(cost))))
        return _case(which, rate.model, price, cost, fee, steps)

    cases = (case("best", rates.best), case("expected", rates.expected), case("worst", rates.worst))
    goal = target if target is not None else floor
    change = _ways_out(price=price, amount=amount, rate=rates.worst, fee=fee, goal=goal, shown=shown) if goal is not None else ()
    said = ("All of it is used.", *rates.assumptions, *assumptions)
    return Finding(offer, about, name, card, cases, target, floor, said, change)


def at_limit(
    *, offer: str, name: str, price: Fraction, limit: Fraction, months: int, is_enforced: bool, fee: Fee, target: Fraction | None,
    floor: Fraction | None,
) -> Finding:  # fmt: skip
    """A customer who costs us as much as the plan's limit on cost allows in ``months`` months, for one price."""
    cost = limit * months
    first = f"The cost limit: {money(limit)} a month" + (f" × {months} months = {money(cost)}." if months > 1 else ".")
    case = _case("worst", "at the limit", price, cost, fee, (first,))
    assumptions = ["A customer costs as much as the limit allows; nothing else is paid for that use."]
    if not is_enforced:
        assumptions.append("The limit is measured and does not stop use: beyond it the margin is lower still.")
    change: tuple[str, ...] = ()
    goal = target if target is not None else floor
    if price and goal is not None and case.margin is not None and case.margin < goal:
        most = (price * (1 - goal) - fee.of(price)) / months
        allowed = f"a limit of at most {money(most, down=True)} a month" if most > 0 else "no limit at all"
        change = (f"For {percent(goal, 0)} at the limit: {allowed} at this price.",)
    return Finding(offer, "cost limit", name, "", (case, case, case), target, floor, tuple(assumptions), change)


def cap(*, limits: Mapping[str, tuple[Fraction | None, Fraction | None]], price: Mapping[str, Fraction]) -> list[Finding]:
    """Limits of different amounts that become one same amount, as a cap would make them, and of which some rise by it: those.

    ``limits`` are the amounts before and after by path (``cost_tiers.free.monthly_cost``), None is no limit; ``price`` is what the
    dearest plan with this limit costs a month, where there is one.
    """
    found = []
    for offer, (old, new) in limits.items():
        if old is None or new is None or new <= old or len({before for before, after in limits.values() if after == new}) < 2:
            continue
        says = [f"It is {money(old)} and would be {money(new)}" + (f", {plain(new / old)} times as much." if old else ".")]
        if offer in price and price[offer] < new:
            says.append(f"That is above the price of {money(price[offer])}.")
        says.append(f"A cap is the lower of the two: {money(old)} stays.")
        name = ": ".join(offer.split(".")[1:]).replace("_", " ")
        found.append(Finding(offer, "cap", name, unknown=" ".join(says), change=(f"Keep {money(old)}.",)))
    return found


def refused(*, before: Iterable[Finding], after: Iterable[Finding]) -> list[Finding]:
    """Which of ``after`` a change may not bring about without a second person: below the floor and worse than before, or a cap that raises.

    Something that was not there before counts as it stands; on a rate card that was not there, against the worst of the same offer.
    So nothing that only improves is ever refused, whatever its margin.
    """
    there: dict[tuple[str, str, str], Fraction] = {}
    worst: dict[tuple[str, str], Fraction] = {}
    for finding in before:
        if finding.margin is not None:
            there[finding.key] = finding.margin
            worst[finding.key[:2]] = min(finding.margin, worst.get(finding.key[:2], finding.margin))
    found = []
    for finding in after:
        was = there.get(finding.key, worst.get(finding.key[:2]))
        if finding.about == "cap" or (finding.is_below_floor and (was is None or finding.margin is None or finding.margin < was)):
            found.append(finding)
    return found


def _case(which: str, model: str, price: Fraction, cost: Fraction, fee: Fee, steps: tuple[str, ...]) -> Case:
    charged = fee.of(price)
    if not price:
        return Case(which, model, price, charged, cost, (*steps, "Nothing is paid for it."))
    left = price - charged - cost
    before = price - cost
    says = (
        *steps,
        f"Without the fee: {money(price)} − {money(cost)} = {money(before)}; ÷ {money(price)} = {percent(before / price)}.",
        fee.says(price),
        f"Left: {money(price)} − {money(charged)} − {money(cost)} = {money(left)}; ÷ {money(price)} = {percent(left / price)}.",
    )
    return Case(which, model, price, charged, cost, says)


def _ways_out(
    *, price: Fraction, amount: Fraction, rate: Rate, fee: Fee, goal: Fraction, shown: Callable[[Fraction], str]
) -> tuple[str, ...]:
    """What would bring the worst case to the goal: another price, less credit, or so much that is never used."""
    cost, keeps = amount * rate.cost, price * (1 - goal) - fee.of(price)
    if not price or not cost or keeps >= cost:
        return ()
    ways = []
    share = 1 - fee.share - goal
    if share > 0:
        ways.append(f"a price of {money((cost + fee.each) / share, up=True)}")
    if keeps > 0:
        ways.append(f"at most {shown(Fraction(int(keeps / rate.cost)))} for this price")
        ways.append(f"at least {percent(1 - keeps / cost)} of it never used")
    if not ways:
        return (f"No price reaches {percent(goal, 0)} here: the fee alone is more.",)
    return (f"For {percent(goal, 0)} at worst: {', or '.join(ways)}.",)


# Words ------------------------------------------------------------------------------------------------------------------------


def money(amount: Fraction, *, up: bool = False, down: bool = False) -> str:
    """Dollars with two to four digits after the point, to six below a dollar; ``up`` and ``down`` round to the cent instead."""
    if up or down:
        cents = -(-amount * 100 // 1) if up else amount * 100 // 1
        amount = Fraction(cents, 100)
    scale = 10**4 if abs(amount) >= 1 else 10**6
    sign, micros = "−" if amount < 0 else "", round(abs(amount) * scale) * (10**6 // scale)
    whole, part = divmod(micros, 10**6)
    digits = f"{part:06}".rstrip("0").ljust(2, "0")
    return f"{sign}${whole:,}.{digits}"


def plain(number: Fraction) -> str:
    """A number with at most six digits after the point, none where it is whole."""
    micros = round(abs(number) * 10**6)
    whole, part = divmod(micros, 10**6)
    digits = f".{part:06}".rstrip("0").rstrip(".")
    return f"{'−' if number < 0 else ''}{whole:,}{digits}"


def percent(share: Fraction | None, digits: int = 1) -> str:
    """``−17.0 %``; with no digits after the point where it is whole and ``digits`` is 0."""
    if share is None:
        return "no revenue"
    if digits == 0 and (share * 100).denominator == 1:
        return f"{'−' if share < 0 else ''}{abs(share) * 100} %"
    tenths = round(abs(share) * 1000)
    return f"{'−' if share < 0 and tenths else ''}{tenths // 10:,}.{tenths % 10} %"


def _capital(sentence: str) -> str:
    return sentence[:1].upper() + sentence[1:]
