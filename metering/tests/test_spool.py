"""manage.py spool: a file of events, recorded once whatever happens."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
from django.core.management import CommandError, call_command

from billing import audit
from metering.management.commands import spool
from metering.models import UsageRecord
from metering.tests.test_api import App
from tests.factories import NANOS, give

pytestmark = pytest.mark.django_db


@pytest.fixture
def app() -> App:
    app = App()
    give(app.account, NANOS)
    return app


def run(app: App, path: Path, **options: Any) -> tuple[str, str, str]:
    """What it said, what it complained of (without its progress), and how it failed."""
    out, err, failed = io.StringIO(), io.StringIO(), ""
    try:
        call_command("spool", str(path), product=app.product.slug, stdout=out, stderr=err, **options)
    except CommandError as error:
        failed = str(error)
    return out.getvalue(), "".join(line for line in err.getvalue().splitlines(keepends=True) if " lines: " not in line), failed


def write(path: Path, *lines: Any) -> Path:
    path.write_bytes(b"\n".join(line if isinstance(line, bytes) else json.dumps(line).encode() for line in lines))
    return path


def test_a_file_counts_once_however_often_it_is_given(app: App, tmp_path: Path) -> None:
    path = write(tmp_path / "events.jsonl", *[app.event(id=f"e{number}") for number in range(spool.LINES + 5)])
    assert run(app, path) == ("spool: 505 created, 0 duplicate, 0 unpriced, 0 conflict, 0 invalid\n", "", "")
    assert run(app, path) == ("spool: 0 created, 505 duplicate, 0 unpriced, 0 conflict, 0 invalid\n", "", "")
    assert UsageRecord.objects.filter(account=app.account).count() == 505
    assert audit.run() == []


def test_the_rest_of_a_file_goes_on_from_a_line(app: App, tmp_path: Path) -> None:
    path = write(tmp_path / "events.jsonl", *[app.event(id=f"e{number}") for number in range(10)])
    assert run(app, path, from_line=8)[0].startswith("spool: 3 created")
    assert run(app, path)[0].startswith("spool: 7 created, 3 duplicate")
    assert run(app, path, from_line=11)[0].startswith("spool: 0 created, 0 duplicate")


def test_every_shape_is_understood_and_an_unknown_model_is_stored_unpriced(app: App, tmp_path: Path) -> None:
    event = app.event()
    data = {name: event[name] for name in ("account", "model", "quantities")}
    provider, _, name = app.model.partition(":")
    attributes = {"gen_ai.system": provider, "gen_ai.request.model": name, "gen_ai.usage.input_tokens": 3}
    path = write(
        tmp_path / "events.jsonl",
        event,
        {"specversion": "1.0", "id": "1", "source": "/chat", "type": "usage", "time": event["time"], "data": data},
        {"id": "s", "account": event["account"], "time": event["time"], "attributes": attributes},
        app.event(model="acme:unheard-of"),
    )
    assert run(app, path) == ("spool: 3 created, 0 duplicate, 1 unpriced, 0 conflict, 0 invalid\n", "", "")


def test_bad_lines_are_named_by_number_and_the_good_ones_are_recorded(app: App, tmp_path: Path) -> None:
    garbage = [
        b"", b"{", b"\xff\xfe", b"[]", b"null", b'"text"', b"7", b"\x00\x01\x02", b'{"id": NaN}', b'{"id": "a", "id": "b"}', b"[" * 5_000,
        b'{"id": "' + b"x" * spool.MAX_LINE_BYTES + b'"}', b"x" * (3 * spool.MAX_LINE_BYTES),
    ]  # fmt: skip
    bad = [app.event(quantities={"input_tokens": -1}), app.event(account="nobody"), app.event(id="same", quantities={"input_tokens": 2})]
    path = write(tmp_path / "events.jsonl", app.event(id="same"), *garbage, *bad, app.event(id="last"))
    out, err, failed = run(app, path)
    assert out == "spool: 2 created, 0 duplicate, 0 unpriced, 1 conflict, 14 invalid\n"
    assert failed == "15 lines were refused; the others are recorded."
    told = [line.partition(":")[0] for line in err.splitlines()]
    assert told == [f"line {number}" for number in range(3, 18)]  # 2 is empty
    assert "quantities.input_tokens" in err
    assert "line 17: its id was used before" in err


def test_only_so_many_bad_lines_are_shown(app: App, tmp_path: Path) -> None:
    path = write(tmp_path / "events.jsonl", *[b"garbage"] * 120)
    _, err, failed = run(app, path)
    assert len(err.splitlines()) == spool.MAX_SHOWN + 1
    assert failed.startswith("120 lines")


def test_a_long_file_says_how_far_it_is(app: App, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spool, "PROGRESS_SECONDS", 0)
    err = io.StringIO()
    path = write(tmp_path / "events.jsonl", *[app.event() for _ in range(spool.LINES + 1)])
    call_command("spool", str(path), product=app.product.slug, stdout=io.StringIO(), stderr=err)
    assert [line.partition(":")[0] for line in err.getvalue().splitlines()] == ["500 lines", "501 lines"]


def test_an_empty_file_is_nothing(app: App, tmp_path: Path) -> None:
    assert run(app, write(tmp_path / "empty.jsonl")) == ("spool: 0 created, 0 duplicate, 0 unpriced, 0 conflict, 0 invalid\n", "", "")


def test_a_file_that_is_none_and_a_product_that_is_none_are_refused(app: App, tmp_path: Path) -> None:
    assert run(app, tmp_path / "missing.jsonl")[2].endswith("No such file or directory")
    assert run(app, tmp_path)[2].endswith("Is a directory")
    with pytest.raises(CommandError, match="There is no product “nonsense”; there are: "):
        call_command("spool", str(tmp_path), product="nonsense")
    with pytest.raises(CommandError, match="invalid int value"):
        call_command("spool", str(tmp_path), "--product", app.product.slug, "--from-line", "many")


def test_accounts_of_another_product_are_not_found(app: App, tmp_path: Path) -> None:
    path = write(tmp_path / "events.jsonl", app.event())
    assert "line 1: No such account." in run(App(), path)[1]
