"""Who may do what: every cell of the matrix is asked of the real surface, of one's own account and of a stranger's.

The table is read as a page: rows are things, columns are people, keys and staff. ``R`` reads, ``C`` makes, ``U`` changes, ``D`` ends or
deletes, ``A`` approves what another asked for; an empty cell is refused. ``own``: one's own acts alone; ``ask``: a second person does it.

Where it says more or less than one might think:

* A member sees who else is in the team, the names of its keys and its invoices, and changes none of them (decision 0045).
* Product keys act for client apps' servers, so one with ``billing:write`` sells; the three scopes of the table do not.
* What limits leave an account is told with every decision to ``usage:write``; the list of limits wants ``usage:read``.
* Webhook endpoints belong to a product and are made by its keys or by superusers; no customer has any.
* Customers' own limits are their plan's: an owner chooses the plan, and no row of the table lets them write a limit.
* Keys to providers of one's own are never stored here (``byo`` is a way of charging), so that row has no surface.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

import pytest
from django.contrib.auth.models import Group
from django.test import Client
from django.urls import reverse
from django.utils import timezone

from accounts import acts, api_keys, approvals
from accounts.models import Account, Membership, User
from billing import ledger, refunds, staff_credit
from metering import usage
from tests.factories import NANOS, make_account, make_key, make_model, make_product

pytestmark = pytest.mark.django_db

TABLE = """
                     | nobody | alone | member | admin | owner | usage:write | usage:read | billing:read | support | finance | superuser
plans and packs      | R      | R     | R      | R     | R     |             |            | R            | R       | R       | R
cost and margin      |        |       |        |       |       |             |            |              |         | R       | R
upstream prices      |        |       |        |       |       |             |            |              |         | R       | R
balance and entries  |        | R     | R      | R     | R     |             |            | R            | R       | R       | R
usage                |        | R     | R      | R     | R     | C           | R          |              | R       | R       | R
holds                |        |       |        |       |       | C           |            |              |         |         |
limits               |        | R     | R      | R     | R     |             | R          |              | RU      | RU      | RU
limit of one account |        |       |        |       |       |             |            |              |         | C       | C
stop of an account   |        |       |        |       |       |             |            |              |         | C       | C
plan and checkout    |        | CU    |        | CU    | CU    |             |            |              |         |         |
invoices             |        | R     | R      | R     | R     |             |            | R            | R       | R       | R
people and roles     |        | RU    | R      | RU    | RU    |             |            |              | R       |         | RU
API keys             |        | RCD   | R      | RCD   | RCD   |             |            |              | RD      | RD      | RCD
webhook endpoints    |        |       |        |       |       |             |            |              | R       |         | RC
credit               |        |       |        |       |       |             |            |              | C       | CA      | CA
refund               |        |       |        |       |       |             |            |              | ask     | C       | C
ledger rows          |        |       |        |       |       |             |            |              |         |         |
plans' versions      |        |       |        |       |       |             |            |              | R       | R       | R
price proposals      |        |       |        |       |       |             |            |              |         | RU      | RU
kill switches        |        |       |        |       |       |             |            |              |         | R       | RC
audit log            |        |       |        |       |       |             |            |              | own     | R       | R
staff and their roles|        |       |        |       |       |             |            |              |         |         | U
"""
HEAD, *LINES = [[cell.strip() for cell in line.split("|")] for line in TABLE.strip("\n").splitlines()]
COLUMNS = HEAD[1:]
MATRIX = {line[0]: dict(zip(COLUMNS, line[1:], strict=True)) for line in LINES}
PEOPLE, KEYS, STAFF = COLUMNS[:5], COLUMNS[5:8], COLUMNS[8:]


class World:
    """A product with a team, a person's account and a stranger's; whoever asks, and what for."""

    def __init__(self) -> None:
        self.product = make_product(flags={"api_access": True}, staff_credit_cap_nanos=5 * NANOS)
        self.team = make_account(self.product, credit=1, kind=Account.Kind.TEAM)
        self.alone = make_account(self.product, credit=1)
        self.stranger = make_account(self.product, credit=1)
        self.clients: dict[str, Client] = {"nobody": Client()}
        for role in ("member", "admin", "owner"):
            self.clients[role] = self.signed_in(self.user(self.team, role))
        self.clients["alone"] = self.signed_in(self.user(self.alone, "owner"))
        self.staff: dict[str, User] = {}
        for role in STAFF:
            user = self.staff[role] = User.objects.create_user(
                f"{uuid4().hex}@example.com", is_staff=True, is_superuser=role == "superuser"
            )
            if role != "superuser":
                user.groups.add(Group.objects.get(name=role))
            self.clients[role] = self.signed_in(user)
        self.keys = {scope: make_key(self.product, account=self.team, scopes=[scope]) for scope in KEYS}
        self.own_keys = {
            account.pk: api_keys.issue(product=self.product, account=account, name="x", scopes=["usage:read"], now=timezone.now()).key.pk
            for account in (self.team, self.alone, self.stranger)
        }
        asker = User.objects.create_user(f"{uuid4().hex}@example.com", is_staff=True)
        asker.groups.add(Group.objects.get(name="support"))
        wanted = staff_credit.Wanted(account=self.team, verb="grant", amount_nanos=6 * NANOS, mark=str(uuid4()), source="goodwill")
        asked = staff_credit.give(wanted=wanted, actor=asker, reason="a test", now=timezone.now())
        assert not isinstance(asked, str)
        self.approval = asked
        acts.note(actor=asker, account=self.team, what="somebody else did this", now=datetime.now(UTC))

    def user(self, account: Account, role: str) -> User:
        user = User.objects.create_user(f"{uuid4().hex}@example.com")
        Membership.objects.create(account=account, user=user, role=role)
        return user

    def signed_in(self, user: User) -> Client:
        client = Client(raise_request_exception=False)
        client.force_login(user)
        return client

    # What is asked of whom ----------------------------------------------------------------------------------------------------

    def page(self, who: str, method: str, path: str, account: Account | None = None) -> bool:
        """A customers' page. Acts are sent empty: who may act is told what is wrong with the form."""
        account = account or (self.alone if who == "alone" else self.team)
        answer = getattr(self.clients[who], method)(
            path.format(account=account.public_id, product=self.product.slug, key=self.own_keys[account.pk])
        )
        return not (answer.status_code in (403, 404) or answer.headers.get("Location", "").startswith("/accounts/login/"))

    def api(self, who: str, method: str, path: str, account: Account | None = None) -> bool:
        headers = {"Authorization": f"Bearer {self.keys[who]}"}
        named = f"?account={account.public_id}" if account else ""
        client = Client(raise_request_exception=False)
        sent: dict[str, Any] = {"data": {"account": account.public_id} if account else {}, "content_type": "application/json"}
        answer = getattr(client, method)(path + (named if method == "get" else ""), headers=headers, **(sent if method == "post" else {}))
        assert answer.status_code < 500, (who, method, path, answer.content)
        return answer.status_code not in (401, 403, 404)

    def desk(self, who: str, method: str, name: str, *args: Any, **sent: Any) -> bool:
        answer = getattr(self.clients[who], method)(reverse(f"admin:{name}", args=args), sent)
        assert answer.status_code < 500, (who, name)
        return bool(answer.status_code == 200)


Ask = Callable[[World, str], bool]


def page(path: str, method: str = "get") -> Ask:
    """For people: of their own account yes or no, of a stranger's never, as if there were none."""

    def ask(world: World, who: str) -> bool:
        if "{account}" in path:
            assert not world.page(who, method, path, world.stranger), (who, path)
        return world.page(who, method, path)

    return ask


def api(path: str, method: str = "get", *, of_account: bool = True) -> Ask:
    """For keys: likewise."""

    def ask(world: World, who: str) -> bool:
        assert not (of_account and method == "get" and world.api(who, method, path, world.stranger)), (who, path)
        return world.api(who, method, path)

    return ask


def desk(name: str, *, method: str = "get", args: Callable[[World], list[Any]] = lambda world: [], **sent: Any) -> Ask:
    return lambda world, who: world.desk(who, method, name, *args(world), **sent)


def team(world: World) -> list[Any]:
    return [world.team.pk]


def own_or_all(world: World, who: str) -> bool:
    shown = world.clients[who].get(reverse("admin:admin_logentry_changelist")).content
    return b"somebody else did this" in shown


def may_approve(world: World, who: str) -> bool:
    shown = world.clients[who].get(reverse("admin:accounts_approval_decide", args=[world.approval.pk]))
    posted = approvals.act(kind=staff_credit.KIND).may_approve(world.staff[who])
    assert posted == (b"Approve: it happens" in shown.content)
    return posted


NONE: Ask = lambda world, who: False  # noqa: E731 (there is no such surface)
A = "/a/{account}/"
API = "/api/v1/"
#: thing → letter → how people, keys and staff would go about it. What is not named has no surface for them.
SURFACES: dict[str, dict[str, tuple[Ask, Ask, Ask]]] = {
    "plans and packs": {
        "R": (page("/pricing/{product}/"), api(API + "billing/plans", of_account=False), desk("pricing_creditpack_changelist"))
    },
    "cost and margin": {"R": (NONE, api(API + "admin/margin", of_account=False), desk("analytics_margin_changelist"))},
    "upstream prices": {"R": (NONE, NONE, desk("pricing_pricerow_changelist"))},
    "balance and entries": {"R": (page(A + "credits/"), api(API + "billing/balance"), desk("analytics_entry_changelist"))},
    "usage": {
        "R": (page(A + "usage/"), api(API + "usage/records"), desk("metering_usagerecord_changelist")),
        "C": (NONE, api(API + "usage/records", "post"), desk("metering_usagerecord_add", method="post")),
    },
    "holds": {"C": (NONE, api(API + "usage/authorize", "post"), desk("metering_openauthorization_add", method="post"))},
    "limits": {
        "R": (page(A), api(API + "usage/limits"), desk("metering_costthrottle_changelist")),
        "U": (NONE, NONE, desk("accounts_account_resume", args=team)),
    },
    "limit of one account": {"C": (NONE, NONE, desk("accounts_account_override", args=team))},
    "stop of an account": {"C": (NONE, NONE, desk("accounts_account_stop", args=team))},
    "plan and checkout": {
        "C": (page(A + "buy/", "post"), api(API + "billing/checkout", "post"), NONE),
        "U": (page(A + "billing/cancel/"), api(API + "billing/subscription/cancel", "post"), NONE),
    },
    "invoices": {"R": (page(A + "billing/"), api(API + "billing/invoices"), desk("billing_stripeinvoice_changelist"))},
    "people and roles": {
        "R": (page(A + "team/"), NONE, desk("accounts_user_changelist")),
        "U": (page(A + "team/", "post"), NONE, desk("accounts_user_add")),
    },
    "API keys": {
        "R": (page(A + "keys/"), NONE, desk("accounts_apikey_changelist")),
        "C": (page(A + "keys/", "post"), NONE, desk("accounts_apikey_add")),
        "D": (page(A + "keys/{key}/"), NONE, desk("accounts_apikey_revoke", args=lambda world: [world.own_keys[world.team.pk]])),
    },
    "webhook endpoints": {
        "R": (NONE, api(API + "webhooks/endpoints", of_account=False), desk("accounts_webhookendpoint_changelist")),
        "C": (NONE, api(API + "webhooks/endpoints", "post"), desk("accounts_webhookendpoint_add")),
    },
    "credit": {"C": (NONE, NONE, desk("accounts_account_grant", args=team)), "A": (NONE, NONE, may_approve)},
    "refund": {"C": (NONE, NONE, lambda world, who: world.staff[who].has_perm("billing.refund_stripepayment"))},
    "ledger rows": {
        "U": (NONE, NONE, desk("billing_grant_change", method="post", args=lambda world: [f"{world.team.pk}-1"], granted="1")),
        "D": (NONE, NONE, desk("billing_grant_delete", method="post", args=lambda world: [f"{world.team.pk}-1"], post="yes")),
    },
    "plans' versions": {"R": (NONE, NONE, desk("pricing_planversion_changelist"))},
    "price proposals": {
        "R": (NONE, NONE, desk("pricing_priceproposal_changelist")),
        "U": (NONE, NONE, lambda world, who: world.staff[who].has_perm("pricing.change_priceproposal")),
    },
    "kill switches": {"R": (NONE, NONE, desk("metering_killswitch_changelist")), "C": (NONE, NONE, desk("metering_killswitch_add"))},
    "audit log": {"R": (NONE, NONE, own_or_all)},
    "staff and their roles": {"U": (NONE, NONE, desk("auth_group_add"))},
}


def cell(world: World, thing: str, who: str) -> str:
    """The letters of one cell, as the surfaces are now."""
    surface = 0 if who in PEOPLE else 1 if who in KEYS else 2
    found = "".join(letter for letter, asks in SURFACES[thing].items() if asks[surface](world, who))
    if thing == "audit log" and not found and who in STAFF:
        return "own" if world.desk(who, "get", "admin_logentry_changelist") else ""
    if thing == "refund" and not found and who in STAFF:
        return "ask" if approvals.act(kind=refunds.KIND).may_ask(world.staff[who]) else ""
    return found


def test_every_cell_of_the_matrix_is_so_and_strangers_accounts_are_not_there() -> None:
    world = World()
    assert MATRIX.keys() == SURFACES.keys()
    assert {thing: {who: cell(world, thing, who) for who in COLUMNS} for thing in MATRIX} == MATRIX


def test_no_customers_sign_in_opens_any_page_of_staff() -> None:
    world = World()
    for who in PEOPLE:
        for name in ("index", "accounts_account_changelist", "billing_grant_changelist", "admin_logentry_changelist"):
            assert world.clients[who].get(reverse(f"admin:{name}")).status_code == 302


def test_support_sees_no_cost_and_no_margin_on_any_page_of_theirs() -> None:
    """Nor a price that would tell them: the pages show such columns to those who may read the margin report."""
    world = World()
    for name, args in (
        ("accounts_account_change", [world.team.pk]), ("metering_usagerecord_changelist", []),
        ("pricing_product_change", [world.product.pk]), ("index", []),
    ):  # fmt: skip
        pages = {who: world.clients[who].get(reverse(f"admin:{name}", args=args)).content.decode() for who in ("support", "finance")}
        assert not re.search(r"\b[Mm]argin\b(?![-:])", pages["support"]), name
        if name != "index":
            assert "Margin" in pages["finance"], name


def test_support_is_told_how_a_charge_came_about_without_what_it_cost_us() -> None:
    world, now = World(), timezone.now()
    [done] = usage.record(events=[usage.Event("explained", world.team, now, make_model(), {"input_tokens": 1_234})], now=now)
    assert isinstance(done, ledger.Usage)
    address = reverse("admin:metering_usagerecord_change", args=[f"{world.team.pk}-{done.id}"])
    pages = {who: world.clients[who].get(address).content.decode() for who in ("support", "finance")}
    for words in ("markup of 50 %", "$0.003702", "We pay", "What was sealed", "3702000"):
        assert words not in pages["support"], words
    for words in ("markup of 50 %", "$0.003702", "We pay", "What was sealed"):
        assert words in pages["finance"], words
    for page in pages.values():
        assert "$0.005553" in page


def test_no_group_of_the_program_is_edited_and_one_of_ones_own_is() -> None:
    world = World()
    own = Group.objects.create(name=f"night shift {uuid4().hex}")
    for group, status in ((Group.objects.get(name="support"), 403), (own, 302)):
        answer = world.clients["superuser"].post(reverse("admin:auth_group_change", args=[group.pk]), {"name": own.name})
        assert answer.status_code == status
    assert Group.objects.filter(name="support").exists()
