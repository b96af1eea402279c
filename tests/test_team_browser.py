"""Team, keys, settings and invitations in a real browser: readable in any light and on a phone; an invitation, a key and a logo at work."""

from __future__ import annotations

import secrets
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from django.db import transaction
from playwright.sync_api import Browser, Page

from accounts import api_keys, branding, logos, members
from accounts.models import Account, Invitation, Membership
from accounts.tests.test_logos import png
from conftest import CHROMIUM
from tests import factories
from tests.test_browser import _WORST_CONTRAST, Customer, keep, person, sign_in

pytestmark = pytest.mark.skipif(not CHROMIUM, reason="no Chromium on this machine: install the package chromium, or name it in CHROMIUM")


def make_team() -> Customer:
    """A team of four with two invitations, keys and a brand."""
    owner, now = person(f"ada.{secrets.token_hex(3)}@example.com"), datetime.now(UTC)
    owner.first_name, owner.last_name = "Ada", "Lovelace"
    owner.save()
    with transaction.atomic():
        product = factories.make_product(
            flags={"team_collaboration": True, "white_label": True, "api_access": True}, support_email="help@example.com"
        )
    account = factories.make_account(product, owner=owner, kind="team", credit=10)
    Account.objects.filter(pk=account.pk).update(name="Analytical Engines Ltd")
    for role in ("admin", "member", "member"):
        colleague = person(f"{role}.{secrets.token_hex(3)}@a-rather-long-company-name.example.com")
        Membership.objects.create(account=account, user=colleague, role=role, created_at=now - timedelta(days=40))
    for when, email in ((now, "grace@example.com"), (now - timedelta(days=8), "somebody.with.a.long.name@another.example.com")):
        members.invite(account=account, email=email, role="member", actor=owner, now=when)
    for name, scopes in (("production backend", ["usage:write", "usage:read"]), ("dashboard", ["billing:read"])):
        api_keys.issue_own(account=account, name=name, scopes=scopes, actor=owner, now=now, expires_at=now + timedelta(days=90))
    ended = api_keys.issue_own(account=account, name="laptop", scopes=["usage:read"], actor=owner, now=now)
    api_keys.revoke_own(key=ended.key, actor=owner, now=now)
    return Customer(owner, Account.objects.get(pk=account.pk))


def paths(who: Customer) -> list[str]:
    other = Membership.objects.filter(account=who.account, role="admin").get()
    mine = Membership.objects.filter(account=who.account, role="owner").get()
    invitation = Invitation.objects.filter(account=who.account).order_by("pk")[0]
    key = who.account.api_keys.filter(revoked_at=None)[0]
    return [
        "team/", f"team/members/{other.pk}/", f"team/members/{mine.pk}/", f"team/invitations/{invitation.pk}/", "keys/", f"keys/{key.pk}/",
        "settings/",
    ]  # fmt: skip


def look_at(page: Page, server: str, who: Customer, name: str) -> None:
    for number, path in enumerate(paths(who)):
        page.goto(f"{server}/a/{who.account.public_id}/{path}")
        keep(page, f"{name}-{number}-{path.split('/')[0]}")
        assert page.evaluate(_WORST_CONTRAST) >= 4.5, path
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), path
        assert len(page.content().encode()) < 100_000, path
        assert page.locator("h1").count() == 1, path
        assert page.evaluate(_UNLABELLED) == [], path


@pytest.mark.parametrize(("width", "scheme"), [(1440, "light"), (360, "light"), (1440, "dark"), (360, "dark")])
@pytest.mark.parametrize("brand", ["", "#ffd400"])
def test_every_page_is_readable(server: str, browser: Browser, width: int, scheme: str, brand: str) -> None:
    who = make_team()
    if brand:
        branding.dress(
            account=who.account, colour=brand, logo=logos.check(png(64, 24)), keep_logo=False, actor=who.user, now=datetime.now(UTC)
        )
    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)  # type: ignore[arg-type]
    page = context.new_page()
    problems: list[str] = []
    page.on("console", lambda message: problems.append(message.text))
    page.on("pageerror", lambda error: problems.append(str(error)))
    sign_in(page, server, who)
    look_at(page, server, who, f"{'brand-' if brand else ''}{scheme}-{width}")
    assert problems == []
    context.close()


def test_a_colleague_is_invited_signs_up_without_javascript_and_is_in(server: str, browser: Browser) -> None:
    who = make_team()
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    sign_in(page, server, who)
    page.goto(f"{server}/a/{who.account.public_id}/team/")
    email = f"new.{secrets.token_hex(3)}@example.com"
    page.get_by_label("Email address").fill(email)
    page.get_by_label("Role").select_option("admin")
    page.get_by_role("button", name="Send the invitation").click()
    assert email in page.locator("section:has(#invitations)").inner_text()
    invitation = Invitation.objects.get(email=email)

    theirs = browser.new_context(java_script_enabled=False).new_page()
    theirs.goto(f"{server}/invitation/{members.token(invitation)}/")
    keep(theirs, "invitation")
    theirs.get_by_role("link", name="Sign up").click()
    assert theirs.get_by_label("Email").input_value() == email
    theirs.get_by_label("Password", exact=True).fill("a long enough phrase")
    theirs.get_by_label("Password (again)").fill("a long enough phrase")
    theirs.get_by_role("button", name="Open the account").click()
    theirs.wait_for_url(f"**/a/{who.account.public_id}/")
    assert Membership.objects.get(account=who.account, user__email=email).role == "admin"
    context.close()


def test_a_logo_is_uploaded_and_a_key_is_made_and_revoked(server: str, browser: Browser, tmp_path: Path) -> None:
    who, file = make_team(), tmp_path / "logo.png"
    file.write_bytes(png(64, 24))
    page = browser.new_context().new_page()
    sign_in(page, server, who)
    page.goto(f"{server}/a/{who.account.public_id}/settings/")
    page.get_by_label("Colour").fill("#b3001b")
    page.get_by_label("Logo").set_input_files(file)
    page.get_by_role("button", name="Save the branding").click()
    assert page.locator(".top .brand img").evaluate("image => image.decode().then(() => image.naturalWidth)") == 64
    accent = page.evaluate("getComputedStyle(document.documentElement).getPropertyValue('--accent')")
    assert accent.strip() == "#b3001b"

    page.goto(f"{server}/a/{who.account.public_id}/keys/")
    page.get_by_label("Name").fill("nightly export")
    page.get_by_label("read usage, limits and explanations").check()
    page.get_by_role("button", name="Make the key").click()
    token = page.get_by_label("The new key").inner_text()
    keep(page, "key-issued")
    assert api_keys.authenticate(token=token, now=datetime.now(UTC)).scopes == {"usage:read"}
    page.get_by_role("link", name="I have copied it").click()
    assert token not in page.content()
    page.get_by_role("link", name="Revoke nightly export").click()
    page.get_by_role("button", name="Revoke the key").click()
    assert "nightly export is revoked" in page.locator(".note.good").inner_text()
    page.context.close()


_UNLABELLED = """() => [...document.querySelectorAll("input:not([type=hidden]), select, textarea")]
  .filter(field => !field.labels.length).map(field => field.name)"""
