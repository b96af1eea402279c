"""A price of ours is moved by one person alone only so far: a lever above the cap is another one's to approve."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from django.test import Client
from django.utils import timezone

from accounts import approvals
from accounts.models import Approval, User
from metering import levers, margin_approvals
from pricing import catalog_file
from pricing.models import CreditPack, Lever, Product

CATALOGS = Path(__file__).parents[2] / "pricing" / "catalogs"
Kind = Lever.Kind

pytestmark = pytest.mark.django_db


def product(slug: str) -> Product:
    catalog_file.apply(catalog_file.parse((CATALOGS / f"{slug}.toml").read_bytes()), actor="test")
    return Product.objects.get(slug=slug)


def boss(name: str) -> User:
    return User.objects.create_superuser(f"{name}@example.com", "correct horse battery")


def far(one: Product, section: str, slug: str, **values: Any) -> list[str]:
    changes = levers.terms(product=one, section=section, slug=slug, values={key.replace("__", "."): to for key, to in values.items()})
    return levers.above_cap(kind=Kind.PACK, changes=changes, now=timezone.now())


def pack(one: Product, price: str) -> list[levers.Change]:
    return levers.terms(product=one, section="packs", slug="enterprise", values={"price": price})


def pull(changes: list[levers.Change]) -> Lever:
    return levers.pull(kind=Kind.PACK, changes=changes, token=uuid4(), actor="ada", reason="a sale", now=timezone.now())[0]


def price() -> int:
    return CreditPack.objects.filter(slug="enterprise").latest("version").price_cents // 100


def test_markups_and_multipliers_are_measured_by_what_customers_pay() -> None:
    rover, prpm = product("rover"), product("prpm")
    assert far(rover, "rate_cards", "standard", markup_percent="125") == []
    assert far(rover, "rate_cards", "standard", markup_percent="126") == [
        "Rover, standard: markup percent: 50 → 126 (+50.7 % of the price)"
    ]
    assert len(far(prpm, "rate_cards", "tokens", default_multiplier="2")) == 1
    assert far(prpm, "rate_cards", "tokens", **{"multipliers__openai:gpt-5": "1.5"}) == []
    assert len(far(prpm, "rate_cards", "tokens", **{"multipliers__openai:gpt-5": "1.6"})) == 1


@pytest.mark.parametrize("said", ["", "nan", "Infinity", "x", "\0"])
def test_garbage_is_no_price_and_is_left_to_the_catalogs_own_check(said: str) -> None:
    rover = product("rover")
    assert far(rover, "packs", "enterprise", price=said) == []
    with pytest.raises(levers.InvalidLever):
        pull(pack(rover, said))


def test_one_person_gets_no_further_in_steps_of_one_day_but_may_undo_them() -> None:
    rover = product("rover")
    first = pull(pack(rover, "140.00"))
    with pytest.raises(levers.InvalidLever, match=r"A second person has to approve it, above the cap: .*100.00 → 180.00 \(\+80 %"):
        pull(pack(rover, "180.00"))
    levers.undo(lever=first, actor="ada", reason="too dear", now=timezone.now())
    assert price() == 100


def test_the_page_asks_once_and_another_approves_with_a_note() -> None:
    product("rover")
    ada, grace, client = boss("ada"), boss("grace"), Client()
    client.force_login(ada)
    form = {"what": "rover enterprise", "price": "200.00", "reason": "dearer", "token": str(uuid4())}
    shown = client.post("/admin/pricing/lever/pull/pack/", form)
    assert "Further than one person alone may move a price." in shown.content.decode()
    for _ in range(2):
        client.post("/admin/pricing/lever/pull/pack/", form | {"confirm": "1", "seen": shown.context["seen"]})
    approval = Approval.objects.get()
    assert (approval.kind, price()) == (margin_approvals.CAP, 100)
    assert "100.00 → 200.00 (+100 % of the price)" in approval.after
    now = timezone.now()
    with pytest.raises(approvals.NotAllowed):
        approvals.approve(approval=approval, actor=ada, note="mine", now=now)
    with pytest.raises(approvals.Impossible, match="Say in the note"):
        approvals.approve(approval=approval, actor=grace, now=now)
    approvals.approve(approval=approval, actor=grace, note="agreed", now=now)
    assert price() == 200
