"""The customers of a simulated year: what each of them does, one life after the other's example.

A life is a generator: it does something, and says when it goes on. All its chances come from one source of its own, so what a customer does
depends on the seed, on what it is answered, and on nothing else.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Final, TypeAlias

from accounts import registration
from accounts.models import Account
from analytics.simulation import stripe
from analytics.simulation.work import Persona, Unit
from billing import periods, stripe_api, subscriptions, top_ups
from billing.models import AutoTopUp, PlanChange
from metering import usage
from pricing.models import CreditPack, PlanVersion

if TYPE_CHECKING:
    from analytics.simulation.year import Year

#: What goes on, and when next.
Life: TypeAlias = Iterator[datetime]

HOUR, DAY = timedelta(hours=1), timedelta(days=1)
ZONES: Final = ("UTC", "Europe/Berlin", "America/New_York", "Asia/Kolkata", "Australia/Lord_Howe", "America/Sao_Paulo")
#: When a declined renewal is tried again, and how often of a hundred it is paid then.
RETRIES: Final = (timedelta(days=3), timedelta(days=5), timedelta(days=6))
PAID_AT_RETRY: Final = 50
#: Chances in percent: of a renewal, to be declined; in each period, to go up, to go down, to end it, to change the members.
DECLINED, UP, DOWN, ENDS, MEMBERS = 6, 5, 4, 5, 25
#: Of a payment in a thousand: to be given back in part, wholly, or to be disputed; and of a dispute in a hundred to be lost.
GIVEN_BACK_PARTLY, GIVEN_BACK, DISPUTED, LOST = 15, 15, 8, 50
#: Of a trial in a hundred, to be ended in time.
LEAVES_TRIAL: Final = 35
#: Of a hundred calls that were authorized: given back, never heard of again, reported hours late, reported twice.
RELEASED, ABANDONED, LATE, TWICE = 4, 2, 2, 2


class Customer:
    """One customer, with the account that it has (None before it signs up)."""

    def __init__(self, year: Year, number: int, persona: Persona) -> None:
        self.year = year
        self.persona = persona
        self.name = f"sim-{number:05d}"
        self.chance = random.Random(f"{year.seed}:{number}")  # noqa: S311 -- a simulation, no secret
        self.is_team = year.has_teams and self.chance.randrange(100) < 25
        self.is_out_of_credit = False
        self._numbers = 0

    def number(self) -> int:
        self._numbers += 1
        return self._numbers

    def account(self) -> Account:
        found = subscriptions.payer(self.year.product.pk, self.name)
        assert found is not None
        return found

    def sign_up(self, first: timedelta) -> Life:
        """Opens the account, as a guest first where the product has guests, and begins its lives."""
        year, chance = self.year, self.chance
        yield year.start + first
        guest = bool(year.product.guest_plan) and chance.randrange(100) < 30
        zone = chance.choice(ZONES)
        if guest:
            self._open(Account.Kind.GUEST, zone)
            year.begin(self.works(days=3))
            yield year.now + DAY * 2
        self._open(Account.Kind.TEAM if self.is_team else Account.Kind.PERSON, zone)
        if year.alternative_cards and chance.randrange(100) < 20:
            Account.objects.filter(product=year.product, external_id=self.name).update(rate_card=chance.choice(year.alternative_cards))
        year.begin(self.works())
        if chance.randrange(100) < self.persona.pays:
            year.begin(self.subscribes(chance.randrange(1, 30)))
        if year.packs and chance.randrange(100) < 10:
            year.begin(self.tops_up())
        if year.counted and chance.randrange(100) < 60:
            year.begin(self.makes_objects())

    def _open(self, kind: str, zone: str) -> None:
        registration.open_account(
            product=self.year.product, external_id=self.name, name=self.name.title(), kind=kind, time_zone=zone, now=self.year.now
        )

    # Usage ----------------------------------------------------------------------------------------------------------------------

    def works(self, days: int | None = None) -> Life:
        """Units of work, day by day, most of them in the customer's own waking hours; a third of the customers leave some day."""
        year, chance = self.year, random.Random(f"{self.year.seed}:{self.name}:{days}")  # noqa: S311 -- a simulation, no secret
        first_day = year.now.replace(hour=0, minute=0, second=0, microsecond=0)
        awake = chance.randrange(24)
        leaves_after = days or (chance.randrange(20, 300) if chance.randrange(100) < 30 else None)
        day = 0
        while leaves_after is None or day < leaves_after:
            today = first_day + DAY * day
            day += 1
            seasonal = 1.6 if chance.randrange(100) < 8 else 0.4 if today.weekday() >= 5 else 1.0
            times = sorted(
                today + timedelta(seconds=(awake * 3600 + int(chance.triangular(0, 57_600)) + chance.randrange(3_600)) % 86_400)
                for _ in range(_poisson(chance, self.persona.daily * seasonal))
            )
            for at in times:
                if at <= year.now:
                    continue
                unit = year.workload.draw(chance)
                if chance.randrange(100) >= self.persona.asked:
                    year.report(self, at, unit, f"{self.name}:{self.number()}")
                    continue
                yield at
                for _ in range(self.persona.burst):
                    self.asks(unit)
            yield max(today + DAY, year.now + timedelta(seconds=1))

    def asks(self, unit: Unit) -> None:
        """Asks leave for a call; how it ends is a life of its own."""
        year, chance = self.year, self.chance
        if year.is_out:
            year.refused["unavailable"] += 1
            return
        feature = chance.choice(year.features) if year.features and chance.randrange(100) < 15 else None
        key = f"{self.name}:{self.number()}"
        year.asked += 1
        try:
            held = usage.authorize(account=self.account(), ask=usage.Ask(unit.model, unit.most, feature=feature), key=key, now=year.now)
        except usage.Refused as refusal:
            year.refused[refusal.layer.name] += 1
            if refusal.layer.name == "credits" and not self.is_out_of_credit:
                self.is_out_of_credit = True
                if year.packs and chance.randrange(100) < self.persona.buys:
                    year.begin(self.buys(chance.choice(year.packs), timedelta(minutes=chance.randrange(5, 2_000))))
            return
        self.is_out_of_credit = False
        year.begin(self.ends(held, unit))

    def ends(self, held: usage.Authorization, unit: Unit) -> Life:
        """The capture of a call, its release, or nothing at all; captures that find us out come when we are back."""
        year, chance = self.year, self.chance
        fate = chance.randrange(100)
        if fate < ABANDONED:
            year.abandoned += 1
            return
        late = ABANDONED <= fate < ABANDONED + LATE
        yield year.now + (HOUR * chance.randrange(1, 40) if late else timedelta(seconds=chance.randrange(3, 600)))
        while year.is_out:
            yield year.back_at() + timedelta(seconds=chance.randrange(1, 900))
        account, id_ = self.account(), held.usage.id
        if fate >= 100 - RELEASED:
            usage.release(account=account, authorization_id=id_)
            return
        for _ in range(2 if fate >= 100 - RELEASED - TWICE else 1):
            usage.capture(account=account, authorization_id=id_, quantities=unit.used)
        year.captured += 1

    def makes_objects(self) -> Life:
        """Makes agents, projects, machines, and gives some up."""
        year, chance = self.year, self.chance
        made: list[tuple[str, str]] = []
        while True:
            yield year.now + DAY * chance.randrange(3, 25)
            if year.is_out:
                continue
            if made and chance.randrange(100) < 30:
                meter, ref = made.pop(chance.randrange(len(made)))
                usage.unreserve(account=self.account(), meter=meter, object_ref=ref)
                continue
            meter, ref = chance.choice(year.counted), f"object-{self.number()}"
            try:
                usage.reserve(account=self.account(), meter=meter, object_ref=ref, now=year.now)
                made.append((meter, ref))
            except usage.Refused as refusal:
                year.refused[refusal.layer.name] += 1

    # Packs ----------------------------------------------------------------------------------------------------------------------

    def buys(self, pack: CreditPack, after: timedelta) -> Life:
        """Buys a pack on Stripe's page; some cards are declined first, and some customers leave it at that."""
        year, chance, number = self.year, self.chance, self.number()
        yield year.now + after
        while year.is_out:  # there is no page to begin on
            yield year.back_at() + HOUR
        if year.visiting(self.name, pack.slug):
            return
        account = self.account()
        customer_id = year.stripe.customer(account, year.now)
        session_id = year.stripe.id("cs", account, number)
        stripe.open_visit(account, pack, session_id, year.now)
        yield year.now + timedelta(minutes=chance.randrange(1, 20))
        payment = stripe.Payment(
            year.stripe.id("pi", account, number), customer_id, "pack", year.second(), [stripe.pack_line(pack)], 0, session_id=session_id
        )
        if chance.randrange(100) < DECLINED:
            year.stripe.charge(payment, paid=False)
            year.tell(payment)
            if chance.randrange(2):
                yield year.now + stripe.VISIT
                year.tell(stripe.visit(session_id, customer_id, payment.created_at, is_over=True))
                return
            yield year.now + timedelta(minutes=3)
        year.stripe.charge(payment, paid=True)
        year.tell(payment)
        self._regrets(payment)

    def tops_up(self) -> Life:
        """Has packs bought by themselves. What :mod:`billing.top_ups` would ask Stripe for is asked of ours; what is due, it says."""
        year, chance = self.year, self.chance
        yield year.now + DAY
        pack = year.packs[0]
        AutoTopUp.objects.create(
            account=self.account(), enabled=True, threshold_nanos=pack.credit_nanos // 5, pack=pack.slug,
            daily_cap_cents=2 * pack.price_cents, changed_at=year.now, changed_by="simulation", look_again_at=year.now,
        )  # fmt: skip
        while True:
            yield year.now + HOUR * chance.randrange(18, 40)
            if year.is_out:
                continue
            account = self.account()
            short = top_ups.wanted(
                funds_nanos=top_ups.funds(account, now=year.now), threshold_nanos=pack.credit_nanos // 5, credit_nanos=pack.credit_nanos
            )
            copies = top_ups.affordable(
                copies=short,
                price_cents=pack.price_cents,
                spent_cents=top_ups.spent_cents(account, now=year.now),
                cap_cents=2 * pack.price_cents,
            )
            if copies == 0 or year.disputed(self.name):
                continue
            number = self.number()
            customer_id = year.stripe.customer(account, year.now)
            invoice_id = year.stripe.id("in", account, number)
            stripe.top_up(account, pack, copies, invoice_id, year.now)
            payment = stripe.Payment(
                year.stripe.id("pi", account, number), customer_id, "top_up", year.second(), [stripe.pack_line(pack, copies)], 0,
                invoice_id=invoice_id,
            )  # fmt: skip
            yield year.now + timedelta(minutes=1)
            year.stripe.charge(payment, paid=True)
            year.tell(payment)
            self._regrets(payment)

    def _regrets(self, payment: stripe.Payment) -> None:
        chance = self.chance.randrange(1_000)
        if payment.due and chance < GIVEN_BACK_PARTLY + GIVEN_BACK:
            self.year.begin(self.is_refunded(payment, partly=chance < GIVEN_BACK_PARTLY))
        elif payment.due and chance < GIVEN_BACK_PARTLY + GIVEN_BACK + DISPUTED:
            self.year.begin(self.disputes(payment))

    def is_refunded(self, payment: stripe.Payment, *, partly: bool) -> Life:
        """A refund by staff at Stripe; one in two parts comes to less than all of it."""
        year, chance = self.year, self.chance
        for share in (chance.randrange(10, 45), chance.randrange(46, 90)) if partly else (100,):
            yield year.now + HOUR * chance.randrange(2, 240)
            payment.refunded = max(payment.refunded, payment.due * share // 100)
            year.refunds += 1
            year.tell(payment)

    def disputes(self, payment: stripe.Payment) -> Life:
        """A dispute over all of a payment; weeks later it is won or lost."""
        year, chance = self.year, self.chance
        yield year.now + DAY * chance.randrange(3, 40)
        dispute_id = payment.id.replace("pi_", "dp_", 1)
        payment.disputes = [stripe_api.Dispute(dispute_id, "needs_response", payment.due - payment.refunded)]
        year.disputes += 1
        year.open_disputes[self.name] += 1
        year.tell(payment)
        yield year.now + DAY * chance.randrange(10, 60)
        outcome = "lost" if chance.randrange(100) < LOST else "won"
        payment.disputes = [stripe_api.Dispute(dispute_id, outcome, payment.disputes[0].amount)]
        year.tell(payment)

    # Plans ----------------------------------------------------------------------------------------------------------------------

    def subscribes(self, after_days: int) -> Life:
        """A plan, from its trial or first payment to its end; some come back months later, without a trial."""
        year, chance = self.year, self.chance
        yield year.now + DAY * after_days + timedelta(seconds=chance.randrange(86_400))
        first = True
        while True:
            while year.is_out:
                yield year.back_at() + HOUR
            terms = self._chosen()
            if terms is None:
                return
            account = self.account()
            customer_id, now = year.stripe.customer(account, year.now), year.second()
            sold = stripe.Subscription(
                year.stripe.id("sub", account, self.number()), customer_id, terms, self._members(terms), now, now,
                (now, periods.anniversary(now, months=1)),
            )  # fmt: skip
            if first and terms.trial_days:
                yield from self._tries(sold, timedelta(days=terms.trial_days))
            if sold.status != "canceled":
                yield from self._renews(sold)
            first = False
            if chance.randrange(100) >= 20:
                return
            yield year.now + DAY * chance.randrange(20, 120)

    def _chosen(self) -> PlanVersion | None:
        """The plan that this customer takes: the lower ones more often."""
        plans = self.year.paid_plans(self.is_team)
        return self.chance.choices(plans, range(len(plans) * 2, len(plans), -1))[0] if plans else None

    def _members(self, version: PlanVersion) -> int:
        return self.chance.randrange(2, 9) if version.per_seat and self.is_team else 1

    def _tries(self, sold: stripe.Subscription, length: timedelta) -> Life:
        year = self.year
        ends_at = sold.started_at + length
        sold.status, sold.trial_ends_at, sold.period = "trialing", ends_at, (sold.started_at, ends_at)
        year.tell(sold)
        yield ends_at - DAY
        if self.chance.randrange(100) < LEAVES_TRIAL:
            sold.cancel_at_period_end = True
            year.tell(sold)
        yield ends_at
        sold.anchor_at = ends_at
        if sold.cancel_at_period_end:
            self._ended(sold, ends_at)
        sold.status = "canceled" if sold.cancel_at_period_end else "active"

    def _renews(self, sold: stripe.Subscription) -> Life:
        """Period after period, until it is ended or nobody pays."""
        year, chance = self.year, self.chance
        for period in range(10_000):
            start, end = (periods.anniversary(sold.anchor_at, months=period + step) for step in (0, 1))
            sold.period = (start, end)
            if period or sold.trial_ends_at:
                year.tell(sold)
                yield start + HOUR  # the invoice is a draft for an hour
            lines, sold.prorated = [sold.line(), *sold.prorated], []
            payment = self._invoice(sold, lines)
            if period and chance.randrange(100) < DECLINED:
                yield from self._collects(sold, payment)
                if sold.status == "canceled":
                    return
            else:
                year.stripe.charge(payment, paid=True)
                year.tell(payment)
                self._regrets(payment)
            if year.now < end:
                yield from self._changes(sold, end)
            yield max(end, year.now)
            if sold.cancel_at_period_end:
                self._ended(sold, end)
                return

    def _invoice(self, sold: stripe.Subscription, lines: list[stripe_api.Line]) -> stripe.Payment:
        year, account, number = self.year, self.account(), self.number()
        return stripe.Payment(
            year.stripe.id("pi", account, number), sold.customer_id, "plan", year.second(), lines, 0, subscription=sold,
            invoice_id=year.stripe.id("in", account, number),
        )  # fmt: skip

    def _collects(self, sold: stripe.Subscription, payment: stripe.Payment) -> Life:
        """A payment that was declined, tried again until it is paid or given up: then the subscription is over."""
        year = self.year
        sold.status, sold.past_due_since, sold.unpaid = "past_due", payment.created_at, True
        year.stripe.charge(payment, paid=False)
        year.tell(payment)
        for pause in RETRIES:
            yield year.now + pause
            if self.chance.randrange(100) < PAID_AT_RETRY:
                sold.status, sold.past_due_since, sold.unpaid = "active", None, False
                year.stripe.charge(payment, paid=True)
                year.tell(payment)
                return
            year.stripe.charge(payment, paid=False)
            year.tell(payment)
        self._ended(sold, year.second())

    def _ended(self, sold: stripe.Subscription, at: datetime) -> None:
        sold.status, sold.ended_at, sold.past_due_since = "canceled", at, None
        self.year.tell(sold)

    def _changes(self, sold: stripe.Subscription, end: datetime) -> Life:
        """What a customer does in the middle of a period: at most one of going up, going down, ending it, and changing the members."""
        year, chance = self.year, self.chance
        wish, share = chance.randrange(100), chance.randrange(20, 80)
        start = sold.period[0]
        at = start + (end - start) * share // 100
        if at <= year.now or wish >= UP + DOWN + ENDS + MEMBERS:
            return
        yield at.replace(microsecond=0)
        while year.is_out:
            yield year.back_at() + HOUR
        if year.now >= end:
            return
        left = (end - year.now) // timedelta(seconds=1), (end - start) // timedelta(seconds=1)
        plans = year.paid_plans(self.is_team)
        place = next((n for n, each in enumerate(plans) if each.pk == sold.version.pk), 0)
        if wish < UP:
            if place + 1 < len(plans):
                yield from self._goes_up(sold, plans[place + 1], left)
        elif wish < UP + DOWN:
            if place:
                self._moves(sold, plans[place - 1], keeps_until=end)
                year.downgrades += 1
                year.tell(sold)
        elif wish < UP + DOWN + ENDS:
            sold.cancel_at_period_end = True
            year.tell(sold)
        elif sold.version.per_seat and self.is_team:
            members = max(1, sold.quantity + chance.choice((-2, -1, 1, 1, 2, 3)))
            assert sold.version.price_cents is not None
            difference = (members - sold.quantity) * sold.version.price_cents * left[0] // left[1]
            sold.quantity = members
            if difference:
                sold.prorated.append(sold.proration(difference))
            year.seat_changes += 1
            year.tell(sold)

    def _goes_up(self, sold: stripe.Subscription, higher: PlanVersion, left: tuple[int, int]) -> Life:
        """An upgrade: the difference for the rest of the period is paid at once."""
        year = self.year
        before = sold.proration(-(sold.price_cents * left[0] // left[1]))
        self._moves(sold, higher, keeps_until=sold.period[0])
        after = sold.proration(sold.price_cents * left[0] // left[1])
        yield year.now + timedelta(seconds=2)
        year.upgrades += 1
        payment = self._invoice(sold, [before, after])
        year.stripe.charge(payment, paid=True)
        year.tell(payment)
        self._regrets(payment)

    def _moves(self, sold: stripe.Subscription, to: PlanVersion, *, keeps_until: datetime) -> None:
        """Our own row of a change, as :mod:`billing.checkout` writes it before Stripe is asked, and the change there."""
        from_price_id, held = sold.price_id, sold.version
        sold.version = to
        PlanChange.objects.create(
            account=self.account(), subscription_id=sold.id, from_version=held, from_price_id=from_price_id, to_version=to,
            to_price_id=sold.price_id, keeps_until=keeps_until, actor="simulation", created_at=self.year.now,
        )  # fmt: skip


def _poisson(chance: random.Random, mean: float) -> int:
    """How many, where ``mean`` are expected."""
    count, left = 0, chance.expovariate(1)
    while left < mean:
        count += 1
        left += chance.expovariate(1)
    return count
