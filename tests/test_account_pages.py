"""An account's API keys, settings and branding: what is shown to whom, what is refused, and what is nowhere to be found."""

from __future__ import annotations

import re
import secrets
from datetime import UTC, datetime, timedelta

import pytest
from django.contrib.admin.models import LogEntry
from django.core.files.uploadedfile import SimpleUploadedFile
from django.db import IntegrityError, transaction
from django.test import Client
from django.utils import timezone

from accounts import api_keys, branding, mail_delivery, members, tenancy
from accounts.logos import MAX_BYTES, check
from accounts.models import Account, ApiKey, Brand, Mail, User
from accounts.tests.test_logos import extended, jpeg, lossless, png
from billing import branding as looks
from billing import features
from pricing.models import Entitlement, Plan, PlanVersion, Product
from tests import factories
from tests.test_team import ROLES, make_team, make_user, owner_of, signed_in

pytestmark = pytest.mark.django_db
NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
KEY = {"form": "key", "name": "backend", "scopes": ["usage:read", "usage:write"], "expires": "30"}
DETAILS = {"form": "details", "name": "Ada & Co", "billing_email": "pay@example.com", "time_zone": "Europe/Paris"}
BRAND = {"form": "brand", "colour": "#0f766e"}


@pytest.fixture
def team(db: None) -> Account:
    return make_team()


def upload(content: bytes, name: str = "logo.png", claimed: str = "image/png") -> SimpleUploadedFile:
    return SimpleUploadedFile(name, content, claimed)


def give_key(account: Account, **fields: object) -> api_keys.Issued:
    terms = {"name": secrets.token_hex(4), "scopes": ["usage:read"], "actor": owner_of(account), "now": timezone.now()} | fields
    return api_keys.issue_own(account=account, **terms)  # type: ignore[arg-type]


class TestKeys:
    @pytest.mark.parametrize("role", ROLES)
    def test_members_look_and_managers_make_keys(self, team: Account, role: str) -> None:
        client, path = signed_in(team, role), f"/a/{team.public_id}/keys/"
        assert client.get(path).status_code == (404 if role == "stranger" else 200)
        assert client.post(path, KEY).status_code == {"owner": 201, "admin": 201, "member": 403, "stranger": 404}[role]
        assert ApiKey.objects.filter(account=team).count() == (role in ("owner", "admin"))

    @pytest.mark.parametrize("role", ROLES)
    def test_managers_revoke_them(self, team: Account, role: str) -> None:
        issued = give_key(team)
        client, path = signed_in(team, role), f"/a/{team.public_id}/keys/{issued.key.pk}/"
        expected = {"owner": 302, "admin": 302, "member": 403, "stranger": 404}[role]
        assert client.get(path).status_code == (200 if expected == 302 else expected)
        assert client.post(path, {"form": "revoke"}).status_code == expected
        issued.key.refresh_from_db()
        assert (issued.key.revoked_at is not None) == (expected == 302)

    def test_the_key_is_shown_once_and_is_nowhere_else(self, team: Account) -> None:
        client, path = signed_in(team, "owner"), f"/a/{team.public_id}/keys/"
        response = client.post(path, KEY)
        token = re.findall(r"tg_live_\w{32}", response.content.decode())
        assert len(token) == 1
        principal = api_keys.authenticate(token=token[0], now=timezone.now())
        assert (principal.account_id, principal.scopes) == (team.pk, frozenset({"usage:read", "usage:write"}))
        assert principal.expires_at is not None
        assert abs(principal.expires_at - timezone.now() - timedelta(days=30)) < timedelta(minutes=1)
        assert "Location" not in response.headers
        assert "no-store" in response.headers["Cache-Control"]
        assert token[0] not in str(response.cookies) + str(dict(client.session))
        assert token[0] not in client.get(path).content.decode()
        assert not LogEntry.objects.filter(change_message__contains=token[0]).exists()
        assert token[0].encode() not in bytes(ApiKey.objects.get(account=team).digest)

    def test_the_form_sent_again_makes_no_second_key(self, team: Account) -> None:
        client, path = signed_in(team, "owner"), f"/a/{team.public_id}/keys/"
        assert client.post(path, KEY).status_code == 201
        again = client.post(path, KEY)
        assert again.status_code == 422
        assert b"works already" in again.content
        assert ApiKey.objects.filter(account=team).count() == 1

    def test_it_says_by_whom_since_when_and_what_for(self, team: Account) -> None:
        owner = owner_of(team)
        issued = give_key(team, name="backend", scopes=["billing:read"])
        page = signed_in(team, "member").get(f"/a/{team.public_id}/keys/").content.decode()
        assert "read the balance, the ledger, the plan and invoices" in page
        assert owner.email in page
        assert issued.key.prefix in page
        assert "Last used" in page
        assert "New key" not in page

    def test_revoked_keys_stand_apart_with_who_revoked_them(self, team: Account) -> None:
        issued, owner = give_key(team, name="old one"), owner_of(team)
        client = signed_in(team, "owner")
        client.post(f"/a/{team.public_id}/keys/{issued.key.pk}/", {"form": "revoke"})
        with pytest.raises(api_keys.InvalidKey):
            api_keys.authenticate(token=issued.token, now=timezone.now() + timedelta(seconds=2))
        page = client.get(f"/a/{team.public_id}/keys/").content.decode()
        assert "1 key that ended" in page
        assert f"by {owner.email}" in page
        assert client.post(f"/a/{team.public_id}/keys/{issued.key.pk}/", {"form": "revoke"}).status_code == 302, "again: no change"
        assert LogEntry.objects.filter(object_id=str(team.pk), change_message__startswith="Revoked").count() == 1

    def test_product_keys_are_never_shown(self, team: Account) -> None:
        api_keys.issue(product=team.product, name="the product's", scopes=["admin:read"], now=NOW)
        give_key(team, name="ours")
        page = signed_in(team, "owner").get(f"/a/{team.public_id}/keys/").content.decode()
        assert "ours" in page
        assert "the product" not in page.partition("<main")[2].replace("the product's own", "")
        with tenancy.acting_as(user=owner_of(team)):
            assert list(ApiKey.objects.defer("digest").values_list("name", flat=True)) == ["ours"]

    def test_a_tenant_reads_its_own_keys_alone(self, team: Account) -> None:
        give_key(make_team(), name="theirs")
        with tenancy.acting_as(user=owner_of(team)):
            assert not ApiKey.objects.values("id").exists()

    def test_another_accounts_key_is_not_found_by_its_number(self, team: Account) -> None:
        theirs = give_key(make_team()).key
        path = f"/a/{team.public_id}/keys/{theirs.pk}/"
        client = signed_in(team, "owner")
        assert client.get(path).status_code == client.post(path, {"form": "revoke"}).status_code == 404
        product_key = api_keys.issue(product=team.product, name="p", scopes=["usage:read"], now=NOW).key
        assert client.post(f"/a/{team.public_id}/keys/{product_key.pk}/", {"form": "revoke"}).status_code == 404

    def test_a_plan_without_api_access_makes_none_and_names_the_one_that_has_it(self) -> None:
        account = factories.make_account(without_features(), owner=make_user())
        give_key(account, name="from before")
        client, path = signed_in(account, "owner"), f"/a/{account.public_id}/keys/"
        page = client.get(path).content.decode()
        assert "Your plan has no API access" in page
        assert "Agency has it" in page
        assert "Keys that were made before go on working" in page
        assert client.post(path, KEY).status_code == 403
        assert client.post(f"{path}{ApiKey.objects.get(account=account).pk}/", {"form": "revoke"}).status_code == 302

    def test_where_no_plan_speaks_of_it_everybody_has_it(self) -> None:
        account = factories.make_account(owner=make_user())
        assert features.of(account=account, key="api_access", now=timezone.now()).open
        assert signed_in(account, "owner").post(f"/a/{account.public_id}/keys/", KEY).status_code == 201

    def test_there_is_a_limit_and_a_closed_account_makes_none(self, team: Account, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(api_keys, "MAX_OWN", 1)
        give_key(team)
        assert signed_in(team, "owner").post(f"/a/{team.public_id}/keys/", KEY).status_code == 422
        Account.objects.filter(pk=team.pk).update(closed_at=NOW)
        with pytest.raises(api_keys.InvalidGrant, match="closed"):
            give_key(team)
        assert signed_in(team, "owner").post(f"/a/{team.public_id}/keys/", KEY).status_code == 403

    @pytest.mark.parametrize(
        "sent",
        [
            {"name": ""}, {"name": "x" * 121}, {"name": "a\x00"}, {"name": "a\nb"}, {"name": "\u202e"}, {"scopes": []},
            {"scopes": ["admin:read"]}, {"scopes": ["usage:read", "everything"]}, {"scopes": ["\x00"]}, {"expires": "0"},
            {"expires": "-1"}, {"expires": "９０"}, {"expires": "99999999999"}, {"expires": "never"},
        ],
    )  # fmt: skip
    def test_garbage_is_said_beside_its_field(self, team: Account, sent: dict[str, object]) -> None:
        response = signed_in(team, "owner").post(f"/a/{team.public_id}/keys/", KEY | sent)
        assert response.status_code == 422
        assert b"errorlist" in response.content
        assert not ApiKey.objects.filter(account=team).exists()


class TestSettings:
    @pytest.mark.parametrize("role", ROLES)
    @pytest.mark.parametrize("sent", [DETAILS, BRAND])
    def test_members_look_and_managers_change(self, team: Account, role: str, sent: dict[str, str]) -> None:
        client, path = signed_in(team, role), f"/a/{team.public_id}/settings/"
        assert client.get(path).status_code == (404 if role == "stranger" else 200)
        expected = {"owner": 302, "admin": 302, "member": 403, "stranger": 404}[role]
        assert client.post(path, sent).status_code == expected
        team.refresh_from_db()
        assert (team.name == "Ada & Co") == (expected == 302 and sent is DETAILS)
        assert Brand.objects.filter(account=team).exists() == (expected == 302 and sent is BRAND)

    def test_a_member_sees_no_form(self, team: Account) -> None:
        assert b'method="post"' not in signed_in(team, "member").get(f"/a/{team.public_id}/settings/").content.partition(b"<main")[2]

    def test_a_change_names_what_and_who_in_the_audit_log(self, team: Account) -> None:
        owner = owner_of(team)
        signed_in(team, "owner").post(f"/a/{team.public_id}/settings/", DETAILS)
        line = LogEntry.objects.get(object_id=str(team.pk), user=owner)
        assert line.change_message == "Changed the name, the billing address, the time zone."
        team.refresh_from_db()
        assert (team.billing_email, team.time_zone) == ("pay@example.com", "Europe/Paris")

    def test_the_page_says_from_when_on_a_time_zone_counts(self, team: Account) -> None:
        assert b"A change counts from the next day on" in signed_in(team, "owner").get(f"/a/{team.public_id}/settings/").content

    @pytest.mark.parametrize(
        "sent",
        [
            {"name": ""}, {"name": "   "}, {"name": "x" * 121}, {"name": "a\x00b"}, {"name": "a\nb"}, {"name": "\u202eevil"},
            {"billing_email": "nobody"}, {"billing_email": "a@example.com\nBcc: b@example.com"},
            {"billing_email": "x" * 300 + "@example.com"}, {"time_zone": ""}, {"time_zone": "Mars/Olympus"},
            {"time_zone": "../../etc/passwd"}, {"time_zone": "UTC\x00"}, {"time_zone": "Factory"},
        ],
    )  # fmt: skip
    def test_garbage_is_said_beside_its_field(self, team: Account, sent: dict[str, str]) -> None:
        before = (team.name, team.billing_email, team.time_zone)
        response = signed_in(team, "owner").post(f"/a/{team.public_id}/settings/", DETAILS | sent)
        assert response.status_code == 422
        assert b"errorlist" in response.content
        team.refresh_from_db()
        assert (team.name, team.billing_email, team.time_zone) == before

    @pytest.mark.failure(87)
    @pytest.mark.parametrize("extra", ["kind", "rate_card", "closed_at", "external_id", "product", "public_id", "balance", "is_staff"])
    def test_a_field_that_does_not_belong_is_refused_and_not_dropped(self, team: Account, extra: str) -> None:
        client, path = signed_in(team, "owner"), f"/a/{team.public_id}/settings/"
        for sent in (DETAILS, BRAND):
            assert client.post(path, sent | {extra: "x"}).status_code == 422
        assert client.post(f"/a/{team.public_id}/keys/", KEY | {extra: "x"}).status_code == 422
        team.refresh_from_db()
        assert team.name == "Ada"
        assert not ApiKey.objects.filter(account=team).exists()

    @pytest.mark.failure(91)
    @pytest.mark.parametrize("path", ["settings/", "keys/", "keys/{key}/"])
    def test_a_form_without_its_token_changes_nothing_and_no_page_is_framed(self, team: Account, path: str) -> None:
        address = f"/a/{team.public_id}/{path}".format(key=give_key(team).key.pk)
        strict = Client(enforce_csrf_checks=True)
        strict.force_login(owner_of(team))
        for sent in (DETAILS, BRAND, KEY, {"form": "revoke"}):
            assert strict.post(address, sent).status_code == 403
        response = strict.get(address, {"form": "revoke"})
        assert response.headers["X-Frame-Options"] == "DENY"
        assert "frame-ancestors 'none'" in response.headers["Content-Security-Policy"]
        assert strict.put(address).status_code in (403, 405)
        assert ApiKey.objects.get(account=team).revoked_at is None
        assert not Brand.objects.filter(account=team).exists()

    def test_a_closed_account_changes_no_more(self, team: Account) -> None:
        Account.objects.filter(pk=team.pk).update(closed_at=NOW)
        client, path = signed_in(team, "owner"), f"/a/{team.public_id}/settings/"
        assert b"This account was closed" in client.get(path).content
        assert client.post(path, DETAILS).status_code == 422
        assert client.post(path, BRAND).status_code == 403


class TestBranding:
    @pytest.mark.parametrize("content", [png(), jpeg(), lossless(3, 3), extended(3, 3)])
    def test_a_logo_is_served_by_its_content_with_the_type_that_was_found(self, team: Account, content: bytes) -> None:
        sent = BRAND | {"logo": upload(content, "x.svg", "image/svg+xml")}
        assert signed_in(team, "owner").post(f"/a/{team.public_id}/settings/", sent).status_code == 302
        brand = Brand.objects.get(account=team)
        response = Client().get(f"/logo/{brand.logo_digest}")
        assert response.content == content
        assert response.headers["Content-Type"] == check(content).type
        assert response.headers["X-Content-Type-Options"] == "nosniff"
        assert "sandbox" in response.headers["Content-Security-Policy"]
        assert "immutable" in response.headers["Cache-Control"]
        assert "Set-Cookie" not in response.headers

    @pytest.mark.parametrize(
        "content",
        [b"", b"<svg xmlns='http://www.w3.org/2000/svg' onload='alert(1)'/>",
         b"GIF89a" + b"\0" * 30, png()[:-3], png(60_000, 60_000), b"\0" * (MAX_BYTES + 1)],
    )  # fmt: skip
    def test_what_is_no_logo_is_refused_beside_its_field(self, team: Account, content: bytes) -> None:
        response = signed_in(team, "owner").post(f"/a/{team.public_id}/settings/", BRAND | {"logo": upload(content)})
        assert response.status_code == 422
        assert b"errorlist" in response.content
        assert not Brand.objects.filter(account=team).exists()

    @pytest.mark.parametrize("colour", ["red", "#fff", "#GGGGGG", "0f766e", "#0f766e;}", "#0f766e\n;", "url(x)", "#０f766e", "\x00"])
    def test_what_is_no_colour_is_refused(self, team: Account, colour: str) -> None:
        sent = {"form": "brand", "colour": colour}
        assert signed_in(team, "owner").post(f"/a/{team.public_id}/settings/", sent).status_code == 422

    def test_the_pages_of_the_account_wear_it(self, team: Account) -> None:
        client = signed_in(team, "owner")
        client.post(f"/a/{team.public_id}/settings/", {"form": "brand", "colour": "#AA3300", "logo": upload(png())})
        digest = Brand.objects.get(account=team).logo_digest
        for path in ("", "usage/", "statement/", "team/", "keys/", "settings/"):
            page = client.get(f"/a/{team.public_id}/{path}").content.decode()
            assert f'<img src="/logo/{digest}" alt="">' in page, path
            assert 'href="/colour/aa3300.css"' in page, path

    def test_mails_and_invitations_wear_it_too(self, team: Account) -> None:
        branding.dress(account=team, colour="#ffd400", logo=check(png()), keep_logo=False, actor=owner_of(team), now=NOW)
        invitation = members.invite(account=team, email="bob@example.com", role="member", actor=owner_of(team), now=timezone.now())
        message = mail_delivery.compose(mail=Mail.objects.get(account=team), recipients=["bob@example.com"])
        html = str(message.alternatives[0][0])
        assert f'<img src="https://testserver/logo/{check(png()).digest}"' in html
        assert "background-color:#ffd400;color:#000000" in html
        assert b'href="/colour/ffd400.css"' in Client().get(f"/invitation/{members.token(invitation)}/").content

    def test_the_widget_wears_its_colour(self, team: Account) -> None:
        branding.dress(account=team, colour="#ffd400", logo=None, keep_logo=True, actor=owner_of(team), now=NOW)
        key = factories.make_key(team.product, account=team)
        minted = Client().post("/api/v1/billing/widget", "{}", content_type="application/json", headers={"Authorization": f"Bearer {key}"})
        assert b'href="/colour/ffd400.css"' in Client().get(minted.json()["url"]).content

    def test_a_logo_is_kept_or_removed_as_one_says(self, team: Account) -> None:
        client, path = signed_in(team, "owner"), f"/a/{team.public_id}/settings/"
        client.post(path, BRAND | {"logo": upload(png())})
        digest = Brand.objects.get(account=team).logo_digest
        client.post(path, {"form": "brand", "colour": ""})
        assert Brand.objects.get(account=team).logo_digest == digest
        client.post(path, {"form": "brand", "colour": "", "remove_logo": "on"})
        brand = Brand.objects.get(account=team)
        assert (brand.logo, brand.logo_digest, brand.colour) == (None, "", "")
        assert Client().get(f"/logo/{digest}").status_code == 404

    @pytest.mark.parametrize("kind", ["person", "team"])
    def test_only_teams_whose_plan_is_white_label_have_it(self, kind: str) -> None:
        account = factories.make_account(without_features(), owner=make_user(), kind=kind)
        client, path = signed_in(account, "owner"), f"/a/{account.public_id}/settings/"
        assert b"Agency has it" in client.get(path).content
        assert client.post(path, BRAND).status_code == 403

    def test_a_person_with_the_plan_is_told_to_be_a_team(self) -> None:
        account = factories.make_account(factories.make_product(flags={"white_label": True}), owner=make_user())
        client, path = signed_in(account, "owner"), f"/a/{account.public_id}/settings/"
        assert b"team account" in client.get(path).content
        assert client.post(path, BRAND).status_code == 403

    def test_when_the_plan_lapses_the_products_own_look_returns_and_the_brand_is_kept(self) -> None:
        product = factories.make_product(flags={"white_label": False}, brand_colour="#123456")
        account = factories.make_account(product, owner=make_user(), kind="team")
        branding.dress(account=account, colour="#0f766e", logo=None, keep_logo=True, actor=owner_of(account), now=NOW)
        look = looks.of(product=product, account=account)
        assert (look.name, look.colour, look.logo) == (product.name, "#123456", "")
        assert Brand.objects.get(account=account).colour == "#0f766e"

    def test_a_product_has_a_logo_of_its_own(self, team: Account) -> None:
        owner = owner_of(team)
        branding.dress_product(product=team.product, logo=check(png()), actor=owner, now=NOW)
        look = looks.of(product=team.product)
        assert look.logo_url == f"https://testserver/logo/{check(png()).digest}"
        branding.dress(account=team, colour="#0f766e", logo=None, keep_logo=True, actor=owner, now=NOW)
        own = looks.of(product=team.product, account=team)
        assert (own.name, own.colour, own.logo) == (team.name, "#0f766e", ""), "a white label shows nobody else's logo"
        branding.dress_product(product=team.product, logo=None, actor=owner, now=NOW)
        assert looks.of(product=team.product).logo == ""

    def test_staff_give_a_product_its_logo_and_take_a_teams_brand_away(self, team: Account) -> None:
        staff = Client()
        staff.force_login(User.objects.create_superuser(f"{secrets.token_hex(6)}@example.com", "x"))
        refused = staff.post("/admin/accounts/brand/add/", {"product": team.product_id, "logo_file": upload(b"<svg/>")})
        assert b"no PNG, JPEG or WebP" in refused.content
        assert staff.post("/admin/accounts/brand/add/", {"product": team.product_id, "logo_file": upload(png())}).status_code == 302
        assert looks.of(product=team.product).logo == f"/logo/{check(png()).digest}"
        brand = Brand.objects.get(product=team.product)
        assert staff.post(f"/admin/accounts/brand/{brand.pk}/change/", {"logo_file": upload(jpeg())}).status_code == 302
        assert looks.of(product=team.product).logo == f"/logo/{check(jpeg()).digest}"
        own = branding.dress(account=team, colour="#0f766e", logo=None, keep_logo=True, actor=owner_of(team), now=NOW)
        assert staff.get(f"/admin/accounts/brand/{own.pk}/change/").status_code == 200
        assert staff.post(f"/admin/accounts/brand/{own.pk}/change/", {"colour": "#000000"}).status_code == 403
        assert staff.post(f"/admin/accounts/brand/{own.pk}/delete/", {"post": "yes"}).status_code == 302
        assert not Brand.objects.filter(account=team).exists()

    def test_a_tenant_reads_its_own_brand_alone(self, team: Account) -> None:
        other = make_team()
        for account in (team, other):
            branding.dress(account=account, colour="#0f766e", logo=None, keep_logo=True, actor=owner_of(account), now=NOW)
        branding.dress_product(product=team.product, logo=check(png()), actor=owner_of(team), now=NOW)
        with tenancy.acting_as(user=owner_of(team)):
            assert list(Brand.objects.values_list("account_id", flat=True)) == [team.pk]

    @pytest.mark.parametrize(
        "fields",
        [
            {"colour": "red"}, {"colour": "#ABCDEF"}, {"logo": b"x", "logo_type": "image/svg+xml", "logo_digest": "0" * 32},
            {"logo": b"x" * (MAX_BYTES + 1), "logo_type": "image/png", "logo_digest": "0" * 32},
            {"logo": b"", "logo_type": "image/png", "logo_digest": "0" * 32}, {"logo": b"x"}, {"logo_type": "image/png"},
        ],
    )  # fmt: skip
    def test_the_database_refuses_what_is_no_brand(self, team: Account, fields: dict[str, object]) -> None:
        with pytest.raises(IntegrityError), transaction.atomic():
            Brand.objects.create(account=team, updated_at=NOW, updated_by=owner_of(team), **fields)

    @pytest.mark.parametrize(
        "path", ["logo/" + "0" * 32, "logo/x", "logo/" + "F" * 32, "colour/fff.css", "colour/FFFFFF.css", "colour/red.css"]
    )
    def test_garbage_for_an_address_is_not_found(self, client: Client, path: str) -> None:
        assert client.get(f"/{path}").status_code == 404

    def test_the_style_sheet_of_a_colour_is_small_and_kept(self, client: Client) -> None:
        response = client.get("/colour/ffcc00.css")
        assert response.headers["Content-Type"] == "text/css"
        assert "immutable" in response.headers["Cache-Control"]
        assert re.fullmatch(r":root\{[^{}]+\}@media \(prefers-color-scheme:dark\)\{:root\{[^{}]+\}\}", response.content.decode())


class TestSwitching:
    def test_who_has_several_accounts_finds_the_others_from_each(self, team: Account) -> None:
        owner = owner_of(team)
        client = Client()
        client.force_login(owner)
        assert b"switch account" not in client.get(f"/a/{team.public_id}/").content
        factories.make_account(owner=owner)
        assert b"switch account" in client.get(f"/a/{team.public_id}/").content
        assert b"you are owner" in client.get("/").content

    def test_closed_accounts_are_no_others(self, team: Account) -> None:
        owner = owner_of(team)
        Account.objects.filter(pk=factories.make_account(owner=owner).pk).update(closed_at=NOW)
        client = Client()
        client.force_login(owner)
        assert b"switch account" not in client.get(f"/a/{team.public_id}/").content


def without_features() -> Product:
    """A product whose free plan withholds everything that its plan Agency has."""
    keys = ("api_access", "white_label", "team_collaboration")
    product = factories.make_product(flags=dict.fromkeys(keys, False))
    plan = Plan.objects.create(product=product, slug="agency", name="Agency", rank=9)
    version = PlanVersion.objects.create(plan=plan, valid_from=factories.START, price_cents=7_900, rate_card="standard")
    for key in keys:
        Entitlement.objects.create(plan_version=version, key=key, kind="flag", enabled=True)
    return product
