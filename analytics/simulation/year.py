"""A year, or less, of one product on an injected clock: sign-ups, usage, renewals, declines, refunds, disputes, changes of plan, outages.

    simulate   lives the days, and says what happened

Everything goes the way of production: accounts are opened by :mod:`accounts.registration`, work is authorized, captured and reported
through :mod:`metering.usage`, payments are handed over by :mod:`billing.stripe_inbox`, jobs are the jobs. Three things are not: the clock
(the ledger's and every ``now``), Stripe (:mod:`analytics.simulation.stripe`), and that nobody sends the mails.

The same arguments give the same ledger, whatever the manner in which the jobs are run: :mod:`analytics.simulation.digest` says so with one
number. While the product is *out*, no job runs, no call is answered, and the client app keeps what its customers used until it is back.

A simulation belongs into a database of its own: it moves the clock of its connection, and its jobs touch every account.
"""

from __future__ import annotations

import heapq
import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from itertools import count
from pathlib import Path
from typing import Final

from accounts import doorbell
from analytics.simulation import books, digest, jobs, stripe, work
from analytics.simulation.customers import HOUR, Customer, Life
from billing import audit, ledger, periods, subscriptions
from billing.models import Checkout
from metering import usage
from pricing import catalog, catalog_file
from pricing.catalog_file import Document
from pricing.models import CreditPack, Entitlement, PlanVersion, PriceRow, Product, RateCard

ACTOR: Final = "manage.py simulate"
#: How often the client app reports what it has not asked about before.
REPORTS: Final = timedelta(hours=6)
#: How many outages a year, and how long they are.
OUTAGES_A_YEAR: Final = 5
OUTAGE_HOURS: Final = (3, 60)
#: Of the customers, so many in a hundred are there in the first week; the others come over the whole time.
AT_FIRST: Final = 45


class Wrong(Exception):
    """The year is not as it must be. The message says what is wrong."""


@dataclass(slots=True)
class Result:
    """What happened, and what is left in the books."""

    digest: str
    books: books.Books
    refused: Counter[str]
    facts: dict[str, int]
    findings: list[audit.Finding] = field(default_factory=list)


class Year:
    """The product, its customers, and the time."""

    def __init__(
        self,
        *,
        product: Product,
        document: Document,
        start: datetime,
        days: int,
        seed: str,
        tag: str,
        manner: jobs.Manner,
        files: Sequence[Path],
    ) -> None:
        self.product = product
        self.start = self.now = start
        self.end = start + timedelta(days=days)
        self.seed = seed
        self.refused: Counter[str] = Counter()
        self.open_disputes: Counter[str] = Counter()
        self.reported = self.late = self.asked = self.captured = self.abandoned = self.upgrades = self.downgrades = self.seat_changes = (
            self.refunds
        ) = self.disputes = 0
        self.stripe = stripe.Stripe(product=product, tag=tag)
        self.workload = work.Workload(document=document, files=files, seed=seed)
        self.packs: list[CreditPack] = catalog.packs(product_id=product.pk, at=start)
        self._plans = {is_team: _paid_plans(product, start, is_team) for is_team in (False, True)}
        self.has_teams = any(version.per_seat for version in self._plans[True])
        terms = catalog.plans(product_id=product.pk, at=start)
        self.counted = sorted({limit.key for each in terms for limit in each.limits if limit.window == Entitlement.Window.COUNT})
        self.features = sorted(catalog.flags(product_id=product.pk))
        used = {each.version.rate_card for each in terms}
        self.alternative_cards = sorted(set(RateCard.objects.filter(product=product).values_list("slug", flat=True)) - used - {"guest"})
        self._outages = _outages(start, days, seed)
        self._lives: list[tuple[datetime, int, Life]] = []
        self._numbers = count()
        self._buffer: list[tuple[datetime, str, Customer, work.Unit]] = []
        self._rings = jobs.rings(manner=manner, start=start, seed=seed)
        self._next_ring = next(self._rings)
        self.worker = jobs.Worker(manner=manner, seed=seed)
        self.books = books.Books(product_id=product.pk, start=start)

    # What customers ask of it ---------------------------------------------------------------------------------------------------

    @property
    def is_out(self) -> bool:
        return any(begin <= self.now < end for begin, end in self._outages)

    def back_at(self) -> datetime:
        return next((end for begin, end in self._outages if begin <= self.now < end), self.now)

    def second(self) -> datetime:
        """Now, in Stripe's whole seconds."""
        return self.now.replace(microsecond=0)

    def begin(self, life: Life) -> None:
        """From now on this goes on too."""
        self._go_on(life)

    def report(self, customer: Customer, at: datetime, unit: work.Unit, key: str) -> None:
        """Finished work that nobody asked about; the client app reports it with the next batch after ``at``."""
        heapq.heappush(self._buffer, (at, key, customer, unit))

    def tell(self, news: stripe.News) -> None:
        self.stripe.tell(news, now=self.now, out=self.is_out)

    def paid_plans(self, is_team: bool) -> list[PlanVersion]:
        """What is sold to such an account, the lowest first."""
        return self._plans[is_team]

    def visiting(self, name: str, pack: str) -> bool:
        """Whether there is a page open where just this is bought."""
        return Checkout.objects.filter(
            account__product=self.product, account__external_id=name, thing=f"pack:{pack}", state="open", completed=False
        ).exists()

    def disputed(self, name: str) -> bool:
        """Who ever disputed a payment is not charged by itself any more."""
        return self.open_disputes[name] > 0

    # Time -----------------------------------------------------------------------------------------------------------------------

    def live(self, on_day: Callable[[int], None]) -> None:
        """Until the end. ``on_day`` hears how many days are over."""
        month = self.start.replace(day=1, hour=0, minute=0, second=0, microsecond=0)
        closes_at = periods.anniversary(month, months=1)
        reports_at = self.start + REPORTS
        day = 0
        while True:
            at = min(self.end, closes_at, reports_at, self._lives[0][0] if self._lives else self.end)
            self._run_jobs(until=at)
            self._set(at)
            if at == self.end:
                break
            if at == closes_at:
                self.books.close(month=month.date(), told=self.stripe.told(), now=at)
                month, closes_at = closes_at, periods.anniversary(closes_at, months=1)
            elif at == reports_at:
                self._back_in_service()
                self._report()
                reports_at += REPORTS
            else:
                _, _, life = heapq.heappop(self._lives)
                self._go_on(life)
            while day < (self.now - self.start).days:
                day += 1
                on_day(day)
        self._outages = []
        self._back_in_service()
        self._report()
        self.worker.finish(now=self.now)
        self.books.close(month=month.date(), told=self.stripe.told(), now=self.now)

    def _go_on(self, life: Life) -> None:
        at = next(life, None)
        if at is not None:
            heapq.heappush(self._lives, (max(at, self.now), next(self._numbers), life))

    def _set(self, at: datetime) -> None:
        """Moves the clock, and forgets what is kept for a second of another one."""
        if at != self.now:
            self.now = at
            ledger.set_clock(at=at)
            subscriptions.clear()

    def _run_jobs(self, *, until: datetime) -> None:
        """Every ring that comes before the next thing that happens. While we are out nobody hears it."""
        while (ring := self._next_ring) < until:
            self._set(max(ring, self.now))
            self._next_ring = next(self._rings)
            if not self.is_out:
                self._back_in_service()
                self.worker.run(now=self.now)

    def _back_in_service(self) -> None:
        if not self.is_out:
            self.stripe.catch_up(now=self.now)

    def _report(self) -> None:
        """A batch of the client app: all that happened since the last one that was answered, the oldest first."""
        if self.is_out:
            return
        done = []
        while self._buffer and self._buffer[0][0] <= self.now:
            done.append(heapq.heappop(self._buffer))
        if not done:
            return
        accounts = subscriptions.payers(self.product.pk, sorted({customer.name for _, _, customer, _ in done}))
        events = [
            usage.Event(key, accounts[customer.name], at, unit.model, unit.used)
            for at, key, customer, unit in done
            if customer.name in accounts
        ]
        for answer in usage.record(events=events, now=self.now):
            if not isinstance(answer, ledger.Usage) or answer.outcome != "done":
                raise Wrong(f"An event was answered {answer!r}.")
        self.reported += len(events)
        self.late += sum(at < self.now - REPORTS for at, _, _, _ in done)


def simulate(
    *,
    document: Document,
    start: datetime,
    days: int,
    accounts: int,
    seed: int,
    manner: jobs.Manner,
    tag: str,
    files: Sequence[Path] = (),
    on_day: Callable[[int], None] = lambda day: None,
) -> Result:
    """Lives ``days`` days from ``start`` with so many accounts of the product in ``document``, which must not exist yet under that slug.

    ``tag`` tells the ids at Stripe from those of other runs in this database. The connection's clock is moved, and set back at the end.

    :raises books.CashDiffers: the books are not what was paid.
    :raises Wrong, stripe.Refused: something was answered as it must not be.
    """
    product_slug = document["product"]["slug"]
    catalog_file.apply(_without_known_prices(document), actor=ACTOR, effective=start)
    product = Product.objects.select_related("unit").get(slug=product_slug)
    text = f"{seed}:{document['product']['name']}"
    try:
        ledger.set_clock(at=start)
        with doorbell.muffled(), stripe.prices(product):
            year = Year(product=product, document=document, start=start, days=days, seed=text, tag=tag, manner=manner, files=files)
            year.workload.price(since=start)
            catalog.clear()
            chance = random.Random(f"{text}:sign-ups")  # noqa: S311 -- a simulation, no secret
            shares = [persona.share for persona in work.PERSONAS]
            for number in range(1, accounts + 1):
                [persona] = chance.choices(work.PERSONAS, shares)
                span = timedelta(days=7 if chance.randrange(100) < AT_FIRST else days) / timedelta(seconds=1)
                year.begin(Customer(year, number, persona).sign_up(timedelta(seconds=chance.randrange(60, max(61, int(span))))))
            year.live(on_day)
        findings = audit.run()
        found = digest.digest(product_id=product.pk)
    finally:
        ledger.set_clock(at=None)
        subscriptions.clear()
    facts = {
        "usage records reported in batches": year.reported,
        "  of them late, after an outage": year.late,
        "calls that asked leave": year.asked,
        "  of them captured": year.captured,
        "  of them never heard of again": year.abandoned,
        "payments": len(year.stripe.payments),
        "declined attempts": year.stripe.declined,
        "refunds": year.refunds,
        "disputes": year.disputes,
        "upgrades": year.upgrades,
        "downgrades": year.downgrades,
        "changes of seats": year.seat_changes,
        "runs of jobs": year.worker.runs,
        "  killed half-way": year.worker.killed,
    }
    return Result(found, year.books, year.refused, facts, findings)


def _without_known_prices(document: Document) -> Document:
    """Wholesale prices are of no product: what an earlier run in this database brought is there."""
    known = set(PriceRow.objects.filter(withdrawn_at=None).values_list("provider", "model", "component"))
    prices = [row for row in document.get("prices", ()) if (row["provider"], row["model"], row["component"]) not in known]
    return {key: value for key, value in document.items() if key != "prices"} | ({"prices": prices} if prices else {})


def _paid_plans(product: Product, at: datetime, is_team: bool) -> list[PlanVersion]:
    """The plans with a price at Stripe that such an account is sold, the lowest first."""
    versions = [terms.version for terms in catalog.plans(product_id=product.pk, at=at)]
    faces = {version.plan.member_plan for version in versions} - {""}
    sold = [version for version in versions if version.price_cents and version.stripe_price_setting]
    return [version for version in sold if not faces or (version.plan.slug in faces) == is_team]


def _outages(start: datetime, days: int, seed: str) -> list[tuple[datetime, datetime]]:
    """When we are out: some hours or days, now and then, the last one well before the end."""
    chance = random.Random(f"{seed}:outages")  # noqa: S311 -- a simulation, no secret
    found = []
    for _ in range(max(1, OUTAGES_A_YEAR * days // 365)):
        begin = start + timedelta(hours=chance.randrange(24, max(25, days * 24 - 24 * 4)), minutes=chance.randrange(60))
        found.append((begin, begin + HOUR * chance.randrange(*OUTAGE_HOURS)))
    return sorted(found)
