"""Levers: terms that staff change for many accounts at once, without a deployment, and take back exactly.

    cost_limits     every limit on cost up or down by a share, of one product or of all
    cost_tier       one tier's limits
    terms           one pack, plan or rate card
    throttling      whether reaching a limit on cost stops work, for every tier
    request_size    the most tokens of one request, on every plan of a product
    promote         a limit in shadow mode refuses, on every plan or tier of a product
    price_back      plans, packs and rate cards back to the price that they had before
    preview         what a lever would change, and whom it would throttle or free
    below_floor     what it would sell below a product's floor, which only a second person may
    above_cap       the prices that it would move further than one person alone may
    pull            changes it, from now on
    taken_back      what undoing would change, or why it cannot be
    undo            restores exactly what was before

A lever is a change of the catalog's own terms (:func:`pricing.catalog_file.pull`): checked like a catalog file, dated, with its line in the
catalog's changes. What was charged never changes; a price is a new version from now on, and subscribers keep theirs (see
:mod:`billing.price_moves`). Every process feels it within ``catalog.MAX_AGE_SECONDS``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any
from uuid import UUID

from django.db import transaction
from django.db.models import Case, CharField, Count, F, When

from billing import subscriptions
from billing.models import StripeSubscription, Subscription
from metering import term_caps, throttles
from metering.models import ShadowRefusal
from pricing import catalog, catalog_file, margin_terms
from pricing.margin_lint import Finding
from pricing.models import CatalogChange, CostTier, CreditPack, Entitlement, Lever, Plan, PlanVersion, Product, RateCard

#: The limits of a tier that are amounts.
COSTS = ("monthly_cost", "daily_cost")
#: What makes the price of a pack.
_PACK = ("price", "credit", "stripe_price_setting")
MOST_PERCENT = 200
LEAST_PERCENT = -90
#: So many accounts are named where whom it concerns is told in words.
_NAMED = 5


class InvalidLever(ValueError):
    """Such a lever cannot be pulled, or not be undone. The message says why."""


@dataclass(frozen=True, slots=True)
class Change:
    """One term of a product's catalog, in the words of its file; None is what the file leaves out."""

    product: Product
    path: tuple[str, ...]
    before: Any
    after: Any

    @property
    def name(self) -> str:
        """For people: ``free: monthly cost (USD)``."""
        *where, key = self.path
        said = key.replace("_", " ") + (" (USD)" if key in COSTS else "")
        return f"{where[-1]}: {said}" if len(where) > 1 or where[:1] == ["rate_cards"] else said

    @property
    def was(self) -> str:
        return _said(self.before)

    @property
    def becomes(self) -> str:
        return _said(self.after)


@dataclass(frozen=True, slots=True)
class Preview:
    """What a lever would do, as things stand. ``accounts`` are on the tiers or plans that change."""

    changes: tuple[Change, ...]
    accounts: int = 0
    throttled: tuple[throttles.Spending, ...] = ()
    freed: tuple[throttles.Spending, ...] = ()
    notes: tuple[str, ...] = field(default=())


# What there is to pull --------------------------------------------------------------------------------------------------------


def cost_limits(*, percent: int, product: Product | None) -> list[Change]:
    """Every monthly and daily limit of every tier, rounded down to a nano-dollar. Requests an hour are no cost.

    :raises InvalidLever: the share is 0 or beyond ``LEAST_PERCENT`` and ``MOST_PERCENT``, or there is no limit.
    """
    if not LEAST_PERCENT <= percent <= MOST_PERCENT or percent == 0:
        raise InvalidLever(f"Give a share from {LEAST_PERCENT} to {MOST_PERCENT} %, other than 0.")
    changes = []
    for one, slug, tier in _tiers(product):
        for key in COSTS:
            if tier[key] != catalog_file.UNLIMITED:
                nanos = catalog_file.USD.parse(tier[key])
                after = catalog_file.USD.show(nanos * (100 + percent) // 100, 2)
                changes.append(Change(one, ("cost_tiers", slug, key), tier[key], after))
    return _some(changes)


def cost_tier(*, product: Product, slug: str, values: Mapping[str, Any]) -> list[Change]:
    """Other limits for one tier. ``values`` are in the words of the catalog file: ``{"monthly_cost": "2.00"}``.

    :raises InvalidLever: no such tier, or nothing would change.
    """
    return terms(product=product, section="cost_tiers", slug=slug, values=values)


def terms(*, product: Product, section: str, slug: str, values: Mapping[str, Any]) -> list[Change]:
    """Other terms for one table of a section of the catalog: ``packs``, ``plans``, ``rate_cards``. A dot in a key goes one table deeper
    (``multipliers.anthropic:claude-opus-5``).

    :raises InvalidLever: no such table, or nothing would change.
    """
    document = _document(product)
    changes = []
    for key, after in values.items():
        path = (section, slug, *key.split(".", 1))
        if catalog_file.value(document, path[:-1]) is None:
            raise InvalidLever(f"{product} has no {section.replace('_', ' ')[:-1]} {slug!r}{' with ' + path[2] if len(path) > 3 else ''}.")
        changes.append(Change(product, path, catalog_file.value(document, path), after))
    return _some(changes)


def throttling(*, on: bool, product: Product | None) -> list[Change]:
    """Whether reaching a limit on cost stops work (``throttle_on_exceed``), or is only measured. :raises InvalidLever: it is so already."""
    after = None if on else False  # the file leaves out what is usual
    return _some(
        [
            Change(one, ("cost_tiers", slug, "throttle_on_exceed"), tier.get("throttle_on_exceed"), after)
            for one, slug, tier in _tiers(product)
        ]
    )


def request_size(*, tokens: int | None, product: Product | None) -> list[Change]:
    """The most tokens of one request, whatever a plan allows beyond; None: as each plan says. :raises InvalidLever: it is so already."""
    path = ("product", "max_request_tokens")
    return _some([Change(one, path, catalog_file.value(_document(one), path), tokens) for one in _products(product)])


def promote(*, product: Product, meter: str) -> list[Change]:
    """The limit on ``meter`` (``messages/day``) refuses wherever it only watches: on every plan of the product, also for those who have
    kept an earlier version; one on ``cost`` on every tier, whose daily and monthly limits refuse together.

    :raises InvalidLever: there is no such limit in shadow mode.
    """
    if meter not in shadowed(product=product):
        raise InvalidLever(f"{product} has no limit {meter[:80]!r} in shadow mode.")
    document = _document(product)
    if meter.partition("/")[0] == "cost":
        return _some(
            [
                Change(product, ("cost_tiers", slug, "throttle_on_exceed"), False, None)
                for slug, tier in document.get("cost_tiers", {}).items()
                if tier.get("throttle_on_exceed") is False
            ]
        )
    path = ("product", "enforced_meters")
    there = catalog_file.value(document, path)
    return _some([Change(product, path, there, [*(there or ()), meter])])


def shadowed(*, product: Product) -> list[str]:
    """The meters of a product's limits that only watch, on any plan version that somebody may be on, or any tier."""
    rows = Entitlement.objects.filter(plan_version__plan__product=product, kind=Entitlement.Kind.LIMIT, mode=Entitlement.Mode.SHADOW)
    meters = {f"{key}/{window}" for key, window in rows.values_list("key", "window")} - set(product.enforced_meters)
    tiers = CostTier.objects.filter(product=product, throttle_on_exceed=False)
    if tiers.filter(daily_cost_nanos__isnull=False).exists():
        meters.add(f"cost/{Entitlement.Window.DAY}")
    if tiers.filter(monthly_cost_nanos__isnull=False).exists():
        meters.add(f"cost/{Entitlement.Window.PERIOD}")
    return sorted(meters)


def price_back(*, product: Product, what: Sequence[str]) -> list[Change]:
    """Prices as they were before the present version: of what :func:`former_prices` names.

    :raises InvalidLever: one of ``what`` had no other price before.
    """
    former = former_prices(product=product)
    if missing := [name for name in what if name not in former]:
        raise InvalidLever(f"There is no earlier price of {', '.join(missing)}.")
    return _some([change for name in what for change in former[name]])


def former_prices(*, product: Product) -> dict[str, list[Change]]:
    """What had another price before (``plans.individual``), and the changes that bring it back."""
    document, found = _document(product), {}
    for plan in Plan.objects.filter(product=product, available=True).order_by("rank"):
        found[f"plans.{plan.slug}"] = _former_plan(product, document, plan)
    for slug, now in document.get("packs", {}).items():
        then = _before(CreditPack.objects.filter(product=product, slug=slug), lambda row: (row.price_cents, row.credit_nanos))
        if then is not None:
            shown = catalog_file.shown_pack(then, product.unit.decimals)
            found[f"packs.{slug}"] = [Change(product, ("packs", slug, key), now.get(key), shown.get(key)) for key in _PACK]
    for slug, card in document.get("rate_cards", {}).items():
        rows = list(RateCard.objects.filter(product=product, slug=slug).order_by("-valid_from")[:2])
        if len(rows) > 1:
            shown = catalog_file.shown_card(rows[1], product.unit.decimals)
            found[f"rate_cards.{slug}"] = [Change(product, ("rate_cards", slug), card, shown)]
    different = {name: [one for one in changes if one.before != one.after] for name, changes in found.items()}
    return {name: changes for name, changes in different.items() if changes}


def _former_plan(product: Product, document: catalog_file.Document, plan: Plan) -> list[Change]:
    """The price before, with the setting that names it at Stripe; without an earlier version, the price that was kept for a roll-back."""
    now = document["plans"][plan.slug]
    same = PlanVersion.objects.filter(plan=plan, currency=now.get("currency", "usd"), interval=now.get("interval", "month"))
    then = _before(same, lambda row: row.price_cents)
    if then is not None:
        setting = then.stripe_price_setting or None
        price = catalog_file.CENTS_OR_CUSTOM.show(then.price_cents, 2)
    elif now.get("legacy_price"):
        setting, price = now.get("stripe_price_setting"), now["legacy_price"]
    else:
        return []
    said = {"price": price, "stripe_price_setting": setting}
    return [Change(product, ("plans", plan.slug, key), now.get(key), after) for key, after in said.items()]


def _before(rows: Any, price: Any) -> Any:
    """The newest version whose price is not the present one's."""
    versions = list(rows.order_by("-valid_from"))
    return next((row for row in versions[1:] if price(row) != price(versions[0])), None)


# Pulling ----------------------------------------------------------------------------------------------------------------------


def preview(*, changes: Sequence[Change], now: datetime) -> Preview:
    """What these changes would mean, as things stand."""
    throttled: list[throttles.Spending] = []
    freed: list[throttles.Spending] = []
    notes: list[str] = []
    accounts = 0
    for product in {change.product for change in changes}:
        theirs = [change for change in changes if change.product == product]
        tiers = _changed_tiers(product, theirs)
        accounts += sum(count for slug, count in _on_tiers(product).items() if slug in tiers)
        for before, after in throttles.spending(now=now, product=product, tiers=tiers) if tiers else ():
            was, will = before is not None and before.throttled, after is not None and after.throttled
            if after is not None and will and not was:
                throttled.append(after)
            if before is not None and was and not will:
                freed.append(before)
        if any(change.path[0] == "product" for change in theirs):
            accounts += product.accounts.filter(closed_at=None).count()
        for change in theirs:
            notes += [*_of_price(change), *_of_promotion(change, now)]
            if change.path[0] == "plans" and change.path[2] == "price":
                accounts += _entitled(product).filter(plan_version__plan__slug=change.path[1]).count()
    return Preview(tuple(changes), accounts, tuple(throttled), tuple(freed), tuple(notes))


def below_floor(*, kind: str, changes: Sequence[Change], now: datetime) -> list[Finding]:
    """What these changes would sell below a floor, and for less than now. Prices that go back were sold at before: they need nobody.

    :raises InvalidLever: a catalog file could not say so.
    """
    found: list[Finding] = []
    if kind == Lever.Kind.PRICE_BACK:
        return found
    for product in sorted({change.product for change in changes}, key=lambda one: one.pk):
        theirs = [(change.path, change.after) for change in changes if change.product == product]
        try:
            found += margin_terms.refused(*catalog_file.changed(product.slug, theirs), at=now)
        except catalog_file.InvalidCatalog as error:
            raise InvalidLever(f"{product}: {'; '.join(error.problems)}") from error
    return found


def above_cap(*, kind: str, changes: Sequence[Change], now: datetime) -> list[str]:
    """In words, see :func:`term_caps.far`. Prices that go back need nobody."""
    return [] if kind == Lever.Kind.PRICE_BACK else term_caps.far(changes=changes, now=now)


def pull(
    *, kind: Lever.Kind, changes: Sequence[Change], token: UUID, actor: str, reason: str, now: datetime, accepted: bool = False
) -> list[Lever]:
    """Changes these terms, in one transaction for all products; the levers, one a product. The same token again changes nothing.

    :param accepted: a second person accepted what it sells below the floor, or moves by more than the cap.
    :raises InvalidLever: a term is not any more what it was at the preview, a catalog file that said so would be refused, it sells
        something below the floor, or it moves a price by more than the cap.
    """
    with transaction.atomic():
        catalog_file.alone()
        if done := list(Lever.objects.filter(token=token)):
            return done
        _unchanged(changes)
        if not accepted and (far := above_cap(kind=kind, changes=changes, now=now)):
            raise InvalidLever(f"A second person has to approve it, above the cap: {'; '.join(far)}")
        levers = []
        for product in sorted({change.product for change in changes}, key=lambda one: one.pk):
            theirs = [change for change in changes if change.product == product]
            _write(product, theirs, actor, accepted=accepted or kind == Lever.Kind.PRICE_BACK)
            kept = [[change.path, change.before, change.after] for change in theirs]
            levers.append(Lever(token=token, product=product, kind=kind, changes=kept, reason=reason, actor=actor, pulled_at=now))
        return Lever.objects.bulk_create(levers)


def taken_back(*, lever: Lever) -> list[Change]:
    """What undoing this lever, and those pulled with it, would change.

    :raises InvalidLever: it was undone, its catalog file says the same by now, or a term is not any more as the lever left it.
    """
    changes = []
    for one in Lever.objects.filter(token=lever.token).select_related("product__unit").order_by("pk"):
        if one.undone_at is not None:
            raise InvalidLever(f"It was undone by {one.undone_by} on {one.undone_at:%Y-%m-%d %H:%M} UTC.")
        if one.adopted_at is not None:
            raise InvalidLever(f"The catalog file of {one.product} says the same since {one.adopted_at:%Y-%m-%d}: change the file.")
        changes += [Change(one.product, tuple(path), after, before) for path, before, after in one.changes]
    _unchanged(changes)
    return changes


def undo(*, lever: Lever, actor: str, reason: str, now: datetime) -> list[Change]:
    """Restores exactly what was before the lever, in one transaction for all products.

    :raises InvalidLever: see :func:`taken_back`.
    """
    with transaction.atomic():
        catalog_file.alone()
        changes = taken_back(lever=lever)
        for product in sorted({change.product for change in changes}, key=lambda one: one.pk):
            _write(product, [change for change in changes if change.product == product], actor, accepted=True)
        Lever.objects.filter(token=lever.token).update(undone_at=now, undone_by=actor, undone_reason=reason)
        return changes


def _write(product: Product, changes: Sequence[Change], actor: str, *, accepted: bool) -> None:
    try:
        catalog_file.pull(product.slug, [(change.path, change.after) for change in changes], actor=actor, accepted=accepted)
    except catalog_file.BelowFloor as error:
        raise InvalidLever(f"{product}: a second person has to accept it. {error.findings[0].headline}") from error
    except catalog_file.InvalidCatalog as error:
        raise InvalidLever(f"{product}: {'; '.join(error.problems)}") from error


def _unchanged(changes: Sequence[Change]) -> None:
    """:raises InvalidLever: a term is not what the change says that it is; it names the term, and who changed the catalog last."""
    for change in changes:
        there = catalog_file.value(_document(change.product), change.path)
        if there != change.before:
            last = CatalogChange.objects.filter(product=change.product).first()
            who = f" {last.actor} changed the catalog last, on {last.applied_at:%Y-%m-%d %H:%M} UTC." if last else ""
            raise InvalidLever(f"{change.product}, {change.name} is {_said(there)} by now, not {change.was}.{who}")


# Reading ----------------------------------------------------------------------------------------------------------------------


def _products(product: Product | None) -> list[Product]:
    found = Product.objects.select_related("unit").order_by("pk")
    return list(found.filter(pk=product.pk) if product else found)


def _tiers(product: Product | None) -> Iterator[tuple[Product, str, dict[str, Any]]]:
    for one in _products(product):
        for slug, tier in _document(one).get("cost_tiers", {}).items():
            yield one, slug, tier


def _document(product: Product) -> catalog_file.Document:
    document = catalog_file.current(slug=product.slug)
    if document is None:
        raise catalog.NotInCatalog(f"There is no product {product.slug!r}.")
    return document


def _some(changes: Sequence[Change]) -> list[Change]:
    found = [change for change in changes if change.before != change.after]
    if not found:
        raise InvalidLever("Nothing would change.")
    return found


def _changed_tiers(product: Product, changes: Sequence[Change]) -> dict[str, CostTier]:
    """The tiers that change, with their limits as they would be; not stored."""
    document = _document(product)
    for change in changes:
        document = catalog_file.with_value(document, change.path, change.after)
    slugs = {change.path[1] for change in changes if change.path[0] == "cost_tiers"}
    try:
        return {slug: CostTier(product=product, slug=slug, **catalog_file.tier_columns(document["cost_tiers"][slug])) for slug in slugs}
    except catalog_file.InvalidCatalog as error:
        raise InvalidLever("; ".join(error.problems)) from error


def _on_tiers(product: Product) -> dict[str, int]:
    """How many open accounts are on each cost tier, their plan's or their own."""
    own = Case(
        When(account__cost_tier="", then=F("plan_version__cost_tier__slug")), default=F("account__cost_tier"), output_field=CharField()
    )
    return dict(_entitled(product).annotate(tier=own).exclude(tier=None).values_list("tier").annotate(Count("pk")).order_by())


def _entitled(product: Product) -> Any:
    return Subscription.objects.filter(account__product=product, account__closed_at=None, status__in=subscriptions.ENTITLED)


def _of_price(change: Change) -> Iterator[str]:
    """What staff should know of a price that goes back."""
    if change.path[0] == "rate_cards":
        yield f"{change.path[1]}: use from now on is charged by the earlier terms. What was charged or authorized stays as it is."
    if change.path[0] not in ("plans", "packs") or change.path[2] != "price":
        return
    section, slug, _ = change.path
    if section == "plans":
        live = StripeSubscription.objects.filter(
            plan_version__plan__product=change.product, plan_version__plan__slug=slug, status__in=subscriptions.ENTITLED
        )
        if count := live.count():
            yield f"{slug}: {count} subscribers keep the price that they pay. Money → Price moves moves them with their next renewals."
    setting = catalog_file.value(_document(change.product), (section, slug, "stripe_price_setting"))
    if setting:
        yield f"{slug}: nobody can buy it before {setting} names the price of {change.becomes} at Stripe; restart the site after that."


def _of_promotion(change: Change, now: datetime) -> Iterator[str]:
    """Whom a limit that begins to refuse would refuse now: who has passed it in a window that is not over."""
    if change.path == ("product", "enforced_meters"):
        meters = sorted(set(change.after or ()) - set(change.before or ()))
    elif change.path[-1] == "throttle_on_exceed" and change.before is False:
        meters = [f"cost/{Entitlement.Window.DAY}", f"cost/{Entitlement.Window.PERIOD}"]
    else:
        return
    passed = ShadowRefusal.objects.filter(account__product=change.product, account__closed_at=None, meter__in=meters, window_end__gt=now)
    accounts = list(passed.order_by("-value_nanos").values_list("account__name", "meter", "count"))
    count = passed.values("account").distinct().count()
    first = ", ".join(f"{name} ({meter}, {calls} calls)" for name, meter, calls in accounts[:_NAMED])
    said = f"{count} account{'' if count == 1 else 's'} passed it in a window that runs now, and would be refused at once."
    yield f"{said} The first of them: {first}" if first else said


def _said(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "none"
    if isinstance(value, dict):
        return ", ".join(f"{key.replace('_', ' ')} {said}" for key, said in value.items() if not isinstance(said, dict) and key != "notes")
    return "as usual" if value is None else str(value)
