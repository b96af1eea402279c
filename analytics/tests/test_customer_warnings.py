"""Customers hear once that much of a limit or most of their credit is used, from a job that charging knows nothing of."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta

import pytest
from django.db import connections, transaction
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from accounts import mail_delivery
from accounts.models import Account, Mail, WebhookEvent
from accounts.tests.webhook_page import as_documented
from analytics import customer_warnings, rollups, tasks
from analytics.models import UsedLately
from metering import limits
from metering.tests.limited import Shop, dollars, plan
from tests.factories import NANOS, give

NOON = datetime(2026, 3, 10, 12, tzinfo=UTC)


def heard(account: Account, kind: str = "limit_warning") -> list[dict[str, object]]:
    assert not Mail.objects.filter(account=account, state="dead").exists()
    return [mail.context for mail in Mail.objects.filter(account=account, kind=kind).order_by("pk")]


def events(account: Account, *kinds: str) -> list[tuple[str, dict[str, object]]]:
    """What client apps were told, each in the fields that docs/webhooks.md promises."""
    found = list(WebhookEvent.objects.filter(account=account, kind__in=kinds).order_by("pk").values_list("kind", "data"))
    assert all(as_documented(kind, data) for kind, data in found)
    return found


def percents(shop: Shop) -> list[object]:
    return [facts["percent"] for facts in heard(shop.account)]


def look(now: datetime | None = None) -> int:
    rollups.fold()
    return customer_warnings.look(now=now or timezone.now())


def use(shop: Shop, times: int) -> None:
    for _ in range(times):
        shop.use()


@pytest.mark.django_db
class TestLimits:
    def test_each_threshold_is_told_at_exactly_its_share_and_once(self) -> None:
        shop = Shop.new(("messages", "day", 20))
        told = []
        with shop.at(NOON):
            for _ in range(20):
                shop.use()
                look(NOON)
                look(NOON)
                told.append(percents(shop))
        assert told[13:15] == [[], [75]]
        assert told[15:18] == [[75, 80], [75, 80], [75, 80, 90]]
        assert told[18:] == [[75, 80, 90], [75, 80, 90, 100]]
        apps = events(shop.account, "limit.warning", "limit.reached")
        assert [(kind, data["percent"]) for kind, data in apps] == [
            ("limit.warning", 75), ("limit.warning", 80), ("limit.warning", 90), ("limit.reached", 100)
        ]  # fmt: skip
        assert apps[-1][1] == {
            "layer": "quota", "meter": "messages/day", "percent": 100, "used": 20, "allowed": 20, "stops": True,
            "resets_at": "2026-03-11T00:00:00+00:00",
        }  # fmt: skip

    def test_a_jump_tells_the_highest_alone_and_then_none_below_it(self) -> None:
        shop = Shop.new(("messages", "day", 100))
        with shop.at(NOON):
            use(shop, 70)
            look(NOON)
            use(shop, 25)
            look(NOON)
            assert percents(shop) == [95]
            use(shop, 5)
            look(NOON)
        assert percents(shop) == [95, 100]

    def test_what_it_tells(self) -> None:
        shop = Shop.new(("messages", "day", 10))
        plan(shop.product, "pro", 2, ("messages", "day", 1_000))
        with shop.at(NOON):
            use(shop, 8)
            look(NOON)
        mail = Mail.objects.select_related("account__product__unit").get(account=shop.account, kind="limit_warning")
        midnight = datetime(2026, 3, 11, tzinfo=UTC)
        assert mail.context == {
            "what": "messages", "window": "day", "percent": 80, "stops": True, "used": 8, "allowed": 10, "resets_at": midnight.isoformat(),
            "upgrade": "Pro",
        }  # fmt: skip
        assert mail.useless_at == midnight
        text = str(mail_delivery.compose(mail=mail, recipients=["ada@example.com"]).body)
        assert text.startswith("You have used 80% of today’s messages\n")
        assert "Pro allows more." in text

    def test_the_next_window_is_told_anew(self) -> None:
        shop = Shop.new(("messages", "day", 4))
        for day in range(2):
            with shop.at(NOON + timedelta(days=day)):
                use(shop, 3)
                look(NOON + timedelta(days=day))
        assert percents(shop) == [75, 75]

    def test_a_day_that_is_over_when_it_is_looked_at_is_not_told(self) -> None:
        shop = Shop.new(("messages", "day", 4))
        with shop.at(NOON):
            use(shop, 4)
        with shop.at(NOON + timedelta(days=1)):
            assert look(NOON + timedelta(days=1)) == 1
        assert percents(shop) == []

    def test_falling_below_a_threshold_and_reaching_it_again_is_told_once(self) -> None:
        shop = Shop.new(("messages", "day", 10))
        with shop.at(NOON):
            use(shop, 7)
            for _ in range(3):
                begun = [shop.authorize(), shop.authorize()]
                customer_warnings.warn(account=shop.account, now=NOON)
                shop.release(begun[0])
                customer_warnings.warn(account=shop.account, now=NOON)
                shop.release(begun[1])
        assert percents(shop) == [90]

    def test_another_limit_in_the_same_window_is_told_for_itself(self) -> None:
        shop = Shop.new(("messages", "day", 4))
        wider = plan(shop.product, "pro", 2, ("messages", "day", 5))
        with shop.at(NOON):
            use(shop, 4)
            look(NOON)
            shop.put_on(wider)
            customer_warnings.warn(account=shop.account, now=NOON)
        assert [(facts["percent"], facts["allowed"]) for facts in heard(shop.account)] == [(100, 4), (80, 5)]

    @pytest.mark.parametrize(
        ("term", "said"),
        [
            (("messages", "day", 2, "soft"), [{"stops": False}]),
            (("messages", "period", 2, "hard"), [{"stops": True}]),
            (("messages", "lifetime", 2, "hard"), [{"window": "lifetime", "resets_at": None}]),
            (("requests", "day", 2, "hard"), [{"what": "requests"}]),
            (("messages", "day", 2, "shadow"), []),
            (("messages", "day", 2, "off"), []),
            (("messages", "day", None, "hard"), []),
            (("requests", "hour", 2, "hard"), []),
            (("runs", "open", 2, "hard"), []),
        ],
    )
    def test_which_limits_are_told(self, term: tuple[object, ...], said: list[dict[str, object]]) -> None:
        shop = Shop.new(term)
        with shop.at(NOON):
            use(shop, 2)
            look(NOON)
        assert [{name: facts[name] for name in wanted} for facts, wanted in zip(heard(shop.account), said, strict=True)] == said

    def test_a_limit_of_nothing_is_not_used_up(self) -> None:
        shop = Shop.new(("messages", "day", 0, "soft"))
        with shop.at(NOON):
            shop.use()
            look(NOON)
        assert heard(shop.account) == []


@pytest.mark.django_db
class TestCost:
    TIER = {"slug": "t", "monthly_cost_nanos": dollars("0.5"), "warn_at_ppm": [750_000, 800_000]}

    def shop(self, **tier: object) -> Shop:
        terms = {name: value for name, value in self.TIER.items() if name != "slug"} | tier
        return Shop.new(tier=terms)

    def test_the_tiers_own_shares_are_told_to_the_nano_and_no_figure_of_ours(self) -> None:
        shop = self.shop()  # a token costs 1,000 nano-USD: 500,000 tokens are the limit
        with shop.at(NOON):
            shop.use(tokens=374_999)
            look(NOON)
            assert percents(shop) == []
            shop.use(tokens=1)
            look(NOON)
            shop.use(tokens=24_999)
            look(NOON)
            assert percents(shop) == [75]
            shop.use(tokens=1)
            look(NOON)
            assert percents(shop) == [75, 80]
            shop.use(tokens=100_000)
            look(NOON)
        assert percents(shop) == [75, 80, 100]
        assert {(facts["what"], facts["used"], facts["allowed"], facts["window"]) for facts in heard(shop.account)} == {
            ("", None, None, "period")
        }
        apps = events(shop.account, "limit.warning", "limit.reached")
        assert [(kind, data["percent"], data["used"], data["allowed"]) for kind, data in apps] == [
            ("limit.warning", 75, None, None), ("limit.warning", 80, None, None), ("limit.reached", 100, None, None)
        ]  # fmt: skip

    def test_what_open_work_may_cost_is_not_used(self) -> None:
        shop = self.shop()
        with shop.at(NOON):
            shop.authorize(tokens=490_000)
            shop.use(tokens=1)
            look(NOON)
        assert percents(shop) == []

    def test_a_tier_without_shares_tells_only_that_it_is_reached_as_does_the_limit_of_a_day(self) -> None:
        shop = self.shop(warn_at_ppm=[], daily_cost_nanos=dollars("0.1"), monthly_cost_nanos=dollars("0.2"))
        with shop.at(NOON):
            shop.use(tokens=99_000)
            look(NOON)
            assert percents(shop) == []
            shop.use(tokens=1_000)
            look(NOON)
        assert [(facts["window"], facts["percent"]) for facts in heard(shop.account)] == [("day", 100)]

    def test_a_tier_that_only_watches_tells_nothing(self) -> None:
        shop = self.shop(throttle_on_exceed=False)
        with shop.at(NOON):
            shop.use(tokens=500_000)
            look(NOON)
        assert percents(shop) == []


@pytest.mark.django_db
class TestCredit:
    def spent(self, shop: Shop, nanos: int) -> None:
        """A token costs a thousand nanos, and half as much again."""
        shop.use(tokens=nanos // 1_500)
        look()

    def test_less_than_a_fifth_of_what_there_was_is_told_once_until_credit_comes_again(self) -> None:
        shop = Shop.new(credit=3)
        self.spent(shop, dollars("2.4"))
        assert heard(shop.account, "low_balance") == []  # exactly a fifth is left
        self.spent(shop, 1_500)
        assert heard(shop.account, "low_balance") == [{"balance_nanos": dollars("0.6") - 1_500}]
        self.spent(shop, dollars("0.3"))
        self.spent(shop, dollars("0.299985"))
        assert len(heard(shop.account, "low_balance")) == 1
        give(shop.account, 3 * NANOS)
        self.spent(shop, dollars("0.3"))
        assert len(heard(shop.account, "low_balance")) == 1
        self.spent(shop, dollars("2.4"))
        assert len(heard(shop.account, "low_balance")) == 2
        apps = events(shop.account, "balance.low")
        assert len(apps) == 2
        assert apps[0] == ("balance.low", {"balance": "0.599998500", "unit": shop.account.product.unit.code})

    def test_the_last_of_it_is_told_as_used_up(self) -> None:
        shop = Shop.new(credit=3)
        self.spent(shop, 3 * NANOS)
        assert heard(shop.account, "low_balance") == [{"balance_nanos": 0}]

    def test_what_only_holds_reserve_is_still_there(self) -> None:
        shop = Shop.new(credit=3)
        shop.authorize(tokens=1_900_000)
        self.spent(shop, 1_500)
        assert heard(shop.account, "low_balance") == []

    def test_who_never_had_credit_is_not_told_that_it_is_gone(self) -> None:
        shop = Shop.new(credit=0, mode="included")
        shop.use()
        assert look() >= 1
        assert heard(shop.account, "low_balance") == []


@pytest.mark.django_db
class TestLooking:
    def test_charging_writes_nothing_for_it_and_only_the_fold_notes_who_used_something(self) -> None:
        shop = Shop.new(("messages", "day", 4))
        rollups.fold()
        UsedLately.objects.all().delete()
        with CaptureQueriesContext(connections["default"]) as captured:
            use(shop, 4)
        assert not any("usedlately" in query["sql"] or "accounts_mail" in query["sql"] for query in captured)
        assert not UsedLately.objects.exists()
        rollups.fold()
        assert list(UsedLately.objects.values_list("account_id", flat=True)) == [shop.account.pk]
        assert customer_warnings.look(now=timezone.now()) == 1
        assert customer_warnings.look(now=timezone.now()) == 0
        assert percents(shop) == [100]

    def test_closed_accounts_and_guests_are_crossed_off_untold(self) -> None:
        shop = Shop.new(("messages", "day", 1))
        guest = Shop.new(("messages", "day", 1))
        shop.use(), guest.use()
        Account.objects.filter(pk=shop.account.pk).update(closed_at=NOON)
        Account.objects.filter(pk=guest.account.pk).update(kind="guest")
        assert look() >= 2
        assert not UsedLately.objects.exists()
        assert heard(shop.account) == heard(guest.account) == []

    def test_one_account_in_trouble_keeps_no_other_from_being_told(self, monkeypatch: pytest.MonkeyPatch) -> None:
        broken, fine = Shop.new(("messages", "day", 1)), Shop.new(("messages", "day", 1))
        broken.use(), fine.use()
        found = limits.counted

        def counted(*, account: Account, **more: object) -> object:
            if account.pk == broken.account.pk:
                raise ZeroDivisionError
            return found(account=account, **more)  # type: ignore[arg-type]

        monkeypatch.setattr(limits, "counted", counted)
        look()
        assert (percents(broken), percents(fine)) == ([], [100])
        assert not UsedLately.objects.exists()

    def test_more_than_a_batch_is_left_for_the_next(self) -> None:
        shops = [Shop.new(("messages", "day", 1)) for _ in range(3)]
        for shop in shops:
            shop.use()
        rollups.fold()
        others = UsedLately.objects.exclude(pk__in=[shop.account.pk for shop in shops])
        others.delete()
        assert [customer_warnings.look(now=timezone.now(), batch=2) for _ in range(3)] == [2, 1, 0]
        assert tasks.warn_customers() == 0


def test_two_jobs_at_once_look_at_different_accounts(committed: None) -> None:
    shops = [Shop.new(("messages", "day", 1)) for _ in range(4)]
    for shop in shops:
        shop.use()
    rollups.fold()

    def work() -> int:
        try:
            return tasks.warn_customers()
        finally:
            connections.close_all()

    with transaction.atomic():
        mine = customer_warnings.look(now=timezone.now(), batch=2)
        with ThreadPoolExecutor(1) as pool:
            theirs = pool.submit(work).result(60)
    assert mine == 2
    assert theirs >= 2
    assert [percents(shop) for shop in shops] == [[100]] * 4
