"""Features that staff switch off for good: client apps are told what to do instead."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from django.test import Client
from waffle.models import Switch

from accounts.models import User
from metering import prompts
from metering.limits import upgrade
from metering.tests.limited import Shop
from metering.tests.test_api import App, body
from tests.factories import NANOS, give

BROWSER = "Cloud machines are off for the moment. Go on in the browser."


@pytest.mark.django_db
class TestFlags:
    def test_a_feature_that_is_off_is_refused_with_what_to_do_instead(self) -> None:
        app, other = App(), App()
        for each in (app, other):
            give(each.account, NANOS)
        switch = Switch.objects.create(name=f"{app.product.slug}.cloud_execution", active=False, note=BROWSER)
        refused = app.authorize(feature="cloud_execution")
        assert (refused.status_code, body(refused)["code"], body(refused)["detail"]) == (403, "feature_off", BROWSER)
        assert "upgrade" not in body(refused)
        assert [each.authorize(feature=feature).status_code for each, feature in ((app, "browser"), (other, "cloud_execution"))] == [
            200,
            200,
        ]
        Switch.objects.filter(pk=switch.pk).update(note=" ")
        assert body(app.authorize(feature="cloud_execution"))["detail"] == "cloud_execution is switched off."
        Switch.objects.filter(pk=switch.pk).update(active=True)
        assert app.authorize(feature="cloud_execution").status_code == 200

    def test_customers_read_what_staff_wrote_and_are_offered_no_plan(self) -> None:
        shop = Shop.new(flags={"cloud_execution": True})
        Switch.objects.create(name=f"{shop.product.slug}.cloud_execution", active=False, note=BROWSER)
        now = datetime.now(UTC)
        prompt = prompts.of(account=shop.account, meter="cloud_execution", now=now)
        assert prompt is not None
        assert (prompt.heading, prompt.ends, prompt.upgrade) == ("Cloud execution is switched off for now", BROWSER, None)
        assert upgrade(account=shop.account, allowed=None, layer=prompt.layer, now=now) is None

    @pytest.mark.parametrize("name", ["x", ".", "a.b.c", "shop.", ".cloud", "Ä.ö", "shop.cloud " + "x" * 80])
    def test_switches_of_other_names_switch_nothing_of_ours(self, name: str) -> None:
        Switch.objects.create(name=name, active=False, note="x")
        assert Shop.new().refused_by(feature="cloud") is None

    def test_staff_switch_it_in_admin(self) -> None:
        shop, client = Shop.new(), Client()
        dates = {f"{name}_0": "2026-01-01" for name in ("created", "modified")} | {
            f"{name}_1": "00:00:00" for name in ("created", "modified")
        }
        client.force_login(User.objects.create_superuser("flags@example.com", "correct horse battery"))
        form = {"name": f"{shop.product.slug}.cloud_execution", "note": BROWSER, **dates}
        added = client.post("/admin/waffle/switch/add/", form)
        assert added.status_code == 302, added.context["adminform"].form.errors
        layer = shop.refusal(feature="cloud_execution")
        assert layer is not None
        assert (layer.name, layer.reason) == ("entitlement", BROWSER)
        switch = Switch.objects.get()
        assert client.post(f"/admin/waffle/switch/{switch.pk}/change/", form | {"active": "on"}).status_code == 302
        assert shop.refused_by(feature="cloud_execution") is None
