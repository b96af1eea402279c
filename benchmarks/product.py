"""What the clients do with the program, in its own terms. See :mod:`benchmarks.crowd`; ``client`` is the client's number."""

from __future__ import annotations

import io
import random
import re
import secrets
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import timedelta
from functools import cache
from typing import Any
from unittest.mock import patch
from uuid import UUID, uuid4

from django.core.management import call_command
from django.db import connection, transaction
from django.test import Client
from django.urls import reverse
from django.utils import timezone
from psycopg import sql

from accounts import prepared
from accounts.models import Account, Membership, User
from analytics import books, margin, rollups
from analytics.drafts import replays
from billing import audit as billing_audit
from billing import balances, ledger
from metering import limits, names, usage
from metering.models import OpenAuthorization, UsageRecord
from pricing import catalog_file
from pricing.models import Entitlement, Product
from tests import factories

CREDIT = 1_000_000
MODELS = 20
FEATURES = 5
WORST_CASE = {"input_tokens": 1_000, "output_tokens": 1_024}
USED = {"input_tokens": 1_000, "output_tokens": 129}
Call = Callable[[], object]


# The world --------------------------------------------------------------------------------------------------------------------


def migrate() -> None:
    call_command("migrate", interactive=False, verbosity=0, stdout=io.StringIO())


def make(*, credit: int = CREDIT) -> dict[str, Any]:
    """A product, its models and features, a key for all its accounts, and the account that the others will be like."""
    with transaction.atomic():
        product = factories.make_product(flags={f"feature-{number}": True for number in range(FEATURES)})
    account = factories.make_account(product, credit=credit)
    models = [factories.make_model() for _ in range(MODELS)]
    for model in models:
        names.model_id(model)
    for number in range(FEATURES):
        names.feature_id(product.pk, f"feature-{number}")
    return {"account": account.pk, "model": models[0], "key": factories.make_key(product)}


def call_once(*, account: int, model: str) -> None:
    """One call, from beginning to end."""
    authorize_and_capture(client=0, first=account, last=account, model=model)()


def findings() -> list[str]:
    """What the audit finds wrong."""
    return [f"{finding.check}: {finding.text}" for finding in billing_audit.run()]


def rollup_differences() -> list[str]:
    """Where the rollups are not what a recount of the records says."""
    return [str(difference) for difference in rollups.check()]


# The hot path, through the Python face ------------------------------------------------------------------------------------------


@cache
def accounts(first: int, last: int) -> list[Account]:
    return list(Account.objects.select_related("product__unit").filter(pk__range=(first, last)))


def authorize(*, client: int, first: int, last: int, model: str) -> Call:
    draw, everybody = random.Random(client), accounts(first, last)
    ask = usage.Ask(model, WORST_CASE, feature="feature-0")

    def call() -> usage.Authorization:
        return usage.authorize(account=draw.choice(everybody), ask=ask, key=secrets.token_hex(12), now=timezone.now())

    return call


def authorize_and_capture(*, client: int, first: int, last: int, model: str) -> Call:
    hold = authorize(client=client, first=first, last=last, model=model)

    def call() -> None:
        held = hold()
        assert isinstance(held, usage.Authorization)
        usage.capture(account=held.account, authorization_id=held.usage.id, quantities=USED)

    return call


def tickets(*, first: int, last: int) -> list[tuple[int, UUID]]:
    """The open authorizations of these accounts, in an order that mixes the accounts."""
    return list(
        OpenAuthorization.objects.filter(account_id__gte=first, account_id__lte=last).order_by("key_hash").values_list("account_id", "id")
    )


def capture(*, client: int, shares: int, first: int, last: int) -> Call:
    """Captures the open authorizations; each client its own share of them, until there are no more."""
    everybody = {account.pk: account for account in accounts(first, last)}
    mine = iter(tickets(first=first, last=last)[client::shares])

    def call() -> ledger.Usage:
        account_id, id_ = next(mine)
        return usage.capture(account=everybody[account_id], authorization_id=id_, quantities=USED)

    return call


def ledger_capture(*, client: int, shares: int, first: int, last: int, statement: str) -> Call:
    """Only the ledger's verb, sent as the Python face sends it: what is rated and looked up before it is left out."""
    mine = iter(tickets(first=first, last=last)[client::shares])
    text = statement.replace(":account", "%s").replace(":id", "%s")

    def call() -> None:
        prepared.rows(text, next(mine))

    return call


# The same as SQL, for pgbench ---------------------------------------------------------------------------------------------------


def statements(*, account: int, model: str) -> dict[str, str]:
    """The ledger's verbs as the Python face really sends them, with ``:account``, ``:key`` and ``:id`` in place of those that differ."""
    sent: list[tuple[str, Sequence[Any]]] = []

    def listen(execute: Callable[..., Any], text: str, parameters: Sequence[Any], many: bool, context: Any) -> Any:
        sent.append((text, parameters))
        return execute(text, parameters, many, context)

    one, key, ask = (
        Account.objects.select_related("product__unit").get(pk=account),
        secrets.token_hex(12),
        usage.Ask(model, WORST_CASE, "feature-0"),
    )
    with connection.execute_wrapper(listen):
        held = usage.authorize(account=one, ask=ask, key=key, now=timezone.now())
        usage.capture(account=one, authorization_id=held.usage.id, quantities=USED)
        with patch.object(limits, "counted", return_value=_four_limits()):
            usage.authorize(account=one, ask=ask, key=f"{key} limited", now=timezone.now())
    keys = [ledger.key_hash("usage", name) for name in (key, f"{key} limited")]
    differing: dict[Any, str] = {account: ":account", held.usage.id: ":id"} | dict.fromkeys(keys, ":key")
    authorize, limited = _templates(sent, "usage_authorize(", differing)
    [capture] = _templates(sent, "usage_capture(", differing)
    return {"authorize": authorize, "capture": capture, "limited": limited}


def _four_limits() -> list[limits.Counted]:
    """Requests, concurrency, messages and cost, none of which is ever reached, in windows that outlast the run."""
    today = timezone.now().replace(hour=0, minute=0, second=0, microsecond=0)
    window, often = (today, today + timedelta(days=2)), 10**15
    found = [
        ledger.Limit("requests", "requests/day", *window, often, 1, True),
        ledger.Limit("concurrency", "requests/open", None, None, often, 1, True),
        ledger.Limit("quota", "messages/day", *window, often, 1, True),
        ledger.Limit("cost", "cost/day", *window, often, 1, True),
    ]
    return [limits.Counted(limit, Entitlement.Mode.HARD) for limit in found]


def _templates(sent: Sequence[tuple[str, Sequence[Any]]], verb: str, differing: dict[Any, str]) -> list[str]:
    return [_template(text, parameters, differing) for text, parameters in sent if verb in text]


def _template(text: str, parameters: Sequence[Any], differing: dict[Any, str]) -> str:
    values = [differing[value] if isinstance(value, UUID | int) and value in differing else _literal(value) for value in parameters]
    return text % tuple(values)


def _literal(value: Any) -> str:
    """``value`` as SQL in which no colon stands inside quotes: pgbench would take it for a variable."""
    text = sql.Literal(value).as_string(None)
    return re.sub(r"'[^']*'", lambda match: "E" + match[0].replace(":", r"\x3a") if ":" in match[0] else match[0], text)


# Batches ------------------------------------------------------------------------------------------------------------------------


def record_many(*, client: int, first: int, last: int, model: str, size: int, sets: int) -> Call:
    """Finished work in ``sets`` of ``size``, as metering hands it to the ledger: rated before, not on the clock."""
    draw, everybody = random.Random(client), accounts(first, last)
    like = _prepared(everybody[0], model)
    work = iter([[replace(like, account_id=draw.choice(everybody).pk, key=uuid4()) for _ in range(size)] for _ in range(sets)])
    return lambda: ledger.record_many(next(work))


def _prepared(account: Account, model: str) -> ledger.Event:
    """An event as metering hands it to the ledger."""
    with patch.object(ledger, "record_many", wraps=ledger.record_many) as handed:
        event = usage.Event(secrets.token_hex(12), account, timezone.now(), model, USED, feature="feature-0")
        list(usage.record(events=[event], now=timezone.now()))
    found: ledger.Event = handed.call_args.args[0][0]
    return found


def bare_insert(*, client: int, first: int, last: int, size: int, sets: int) -> Call:
    """The least that counts events once: rows of the same width as a usage record's, by key, in one statement, and nothing else."""
    draw, now = random.Random(client), timezone.now()
    arrays = "%s::bigint[], %s::uuid[], %s::uuid[], %s::uuid[], %s::timestamptz[]"
    values = "12345000::bigint, 8230000::bigint, 12345000::bigint, 0::bigint, 7, 3, 11, '{1,2}'::int[], '{1000,129}'::bigint[]"
    statement = f"insert into bench_event select e.*, {values} from unnest({arrays}) e on conflict do nothing"

    def one_set() -> list[list[Any]]:
        ids = [[uuid4() for _ in range(size)] for _ in range(3)]
        return [[draw.randint(first, last) for _ in range(size)], *ids, [now] * size]

    work = iter([one_set() for _ in range(sets)])

    def call() -> None:
        with connection.cursor() as cursor:
            cursor.execute(statement, next(work))

    return call


# Reading ------------------------------------------------------------------------------------------------------------------------


def visitor(*, account: int) -> None:
    """Makes the person who looks at the account's pages."""
    user = User.objects.create_user(email="visitor@example.com", password=secrets.token_hex(16))
    Membership.objects.create(account_id=account, user=user, role=Membership.Role.OWNER)


def read_balance(*, client: int, account: int) -> Call:
    one = Account.objects.get(pk=account)
    return lambda: balances.of_account(one, now=timezone.now())


def read_page(*, client: int, account: int, page: str) -> Call:
    """A page of the account, as the person signed in gets it; without the web server."""
    browser, one = Client(), Account.objects.get(pk=account)
    browser.force_login(User.objects.get(email="visitor@example.com"))
    address = f"/a/{one.public_id}/{page}"

    def call() -> None:
        answer = browser.get(address)
        if answer.status_code != 200:
            raise RuntimeError(f"{address} was answered {answer.status_code}")

    return call


def margin_report(*, client: int) -> Call:
    until = timezone.now().date() + timedelta(days=1)
    return lambda: margin.report(by="model", since=until - timedelta(days=365), until=until)


def fold() -> float:
    """Folds the rollups and the books, as the job does; how many seconds that took."""
    begun = time.monotonic()
    while rollups.fold() == rollups.FOLD_LIMIT:
        pass
    books.fold()
    return time.monotonic() - begun


def margin_scan(*, client: int) -> Call:
    """What the report of :func:`margin_report` says of cost and revenue, from the records themselves."""

    def call() -> None:
        with connection.cursor() as cursor:
            cursor.execute("set statement_timeout = 0")
            cursor.execute(
                "select m.provider || ':' || m.name, count(*), sum(cost_nanos), sum(value_nanos) from usage_record u"
                " join metering_usagemodel m on m.id = u.model_id"
                " where outcome in ('captured', 'recorded') and event_at >= now() - interval '365 days' group by 1 order by 4 desc"
            )
            cursor.fetchall()

    return call


def replay_draft(*, account: int, days: int, changed: bool) -> dict[str, Any]:
    """Replays the last ``days`` of everybody like ``account``: under a dearer draft with two limits, or under the catalog as it is."""
    now = timezone.now()
    product: Product = Account.objects.select_related("product__unit").get(pk=account).product
    document = catalog_file.current(slug=product.slug)
    assert document is not None
    if changed:
        document = catalog_file.with_value(document, ["rate_cards", "standard", "markup_percent"], "60")
        limits = {"messages": {"day": 40}, "requests": {"hour": 20}}
        free = document["plans"]["free"]
        document = document | {"plans": {"free": free | {"entitlements": free["entitlements"] | limits}}}
    asked = replays.ask(
        product=product, document=document, name="bench", since=now - timedelta(days=days), until=now, actor="bench", now=now
    )
    begun = time.monotonic()
    done = replays.work_next(now=now)
    assert done is not None
    assert done.pk == asked.pk
    if done.error:
        raise RuntimeError(done.error)
    said = done.summary
    return {
        "seconds": time.monotonic() - begun,
        "uses": said["old"]["records"],
        "wrong": said["wrong_accounts"],
        "changed": said["changed"],
    }


def staff_addresses(*, account: int) -> dict[str, str]:
    """Staff's pages by name, with a superuser to look at them; ``account`` is the busy one."""
    User.objects.create_superuser("boss@example.com", secrets.token_hex(16))
    one = Account.objects.get(pk=account)
    record = UsageRecord.objects.filter(account=one).latest("recorded_at")
    product = one.product.slug
    return {
        "Dashboard, all products, 30 days": reverse("admin:index"),
        "Dashboard, all products, 90 days": reverse("admin:index") + "?days=90",
        "Dashboard, one product, 30 days": reverse("admin:index") + f"?product={product}",
        "Account 360°, with a tenth of all records": reverse("admin:accounts_account_change", args=[account]),
        "Account found by a name that many have": reverse("admin:accounts_account_find") + "?q=Ada",
        "Account found by an Idempotency-Key": reverse("admin:accounts_account_find") + "?q=4c6b1d0e-no-such-key",
        "Accounts": reverse("admin:accounts_account_changelist"),
        "Margin by account, 30 days": reverse("admin:analytics_margin_changelist") + "?by=account",
        "Revenue, 30 days": reverse("admin:analytics_revenue"),
        "Margin by model, a year": reverse("admin:analytics_margin_changelist")
        + f"?by=model&since={timezone.now().date() - timedelta(days=364)}",
        "Risk": reverse("admin:analytics_risk") + f"?product={product}",
        "Usage records": reverse("admin:metering_usagerecord_changelist") + "?within=30",
        "Usage records of the account": reverse("admin:metering_usagerecord_changelist") + f"?account__id__exact={account}",
        "A usage record, explained": reverse("admin:metering_usagerecord_change", args=[f"{account}-{record.pk}"]),
        "Ledger entries": reverse("admin:analytics_entry_changelist"),
        "Operations": reverse("admin:billing_operation_changelist"),
        "Grants": reverse("admin:billing_grant_changelist"),
        "Throttled accounts": reverse("admin:metering_costthrottle_changelist"),
        "Shadow limits": reverse("admin:metering_shadowrefusal_changelist"),
        "Alerts": reverse("admin:analytics_alert_changelist"),
        "Jobs": reverse("admin:analytics_jobrun_changelist"),
        "Kill switches": reverse("admin:metering_killswitch_changelist"),
        "Projection": reverse("admin:analytics_projection"),
    }


def staff_page(*, client: int, address: str) -> Call:
    """A page as staff get it; without the web server."""
    browser = Client()
    browser.force_login(User.objects.get(email="boss@example.com"))

    def call() -> None:
        answer = browser.get(address, follow=True)
        ended = answer.request["PATH_INFO"]
        assert (answer.status_code, ended.startswith(reverse("admin:index"))) == (200, True), (address, answer.status_code, ended)

    return call
