"""The shape of the code, beside what import-linter checks (pyproject.toml)."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from django.apps import apps
from django.db import models

from config import roles

ROOT = Path(__file__).resolve().parent.parent
APPS = ("analytics", "metering", "billing", "accounts", "pricing")
PURE = ("pricing/rating.py", "billing/periods.py", "billing/redirects.py", "analytics/projections.py")
VAGUE = {"helpers", "utils", "util", "services", "selectors", "common", "misc", "base", "managers"}


def modules(*folders: str) -> list[str]:
    """Every module of these folders but tests and migrations, as a path below the root."""
    found = (path.relative_to(ROOT) for folder in folders for path in (ROOT / folder).rglob("*.py"))
    return sorted(str(path) for path in found if not {"tests", "migrations", "djstripe_migrations"} & set(path.parts))


def tree(module: str) -> ast.Module:
    return ast.parse((ROOT / module).read_text(), module)


def imported(module: str) -> Iterator[str]:
    """The first name of everything that a module imports, however deep inside it."""
    for node in ast.walk(tree(module)):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield (node.module or "").partition(".")[0] if not node.level else "."


def ledger_verbs() -> set[str]:
    source = "".join(path.read_text() for path in (ROOT / "billing/sql").glob("*.sql"))
    return set(re.findall(r"^create (?:or replace )?function ((?:ledger|usage)_\w+)", source, re.MULTILINE))


@pytest.mark.parametrize("module", PURE)
def test_pure_modules_import_the_standard_library_alone(module: str) -> None:
    assert set(imported(module)) - sys.stdlib_module_names == set()


@pytest.mark.parametrize("module", PURE)
def test_pure_modules_read_no_clock(module: str) -> None:
    calls = {node.attr for node in ast.walk(tree(module)) if isinstance(node, ast.Attribute)}
    assert calls & {"now", "today", "utcnow", "monotonic", "time_ns"} == set()


@pytest.mark.parametrize("module", modules(*APPS))
def test_no_number_becomes_a_float(module: str) -> None:
    used = [node.lineno for node in ast.walk(tree(module)) if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "float"]
    assert used == []


def test_no_column_of_ours_is_a_float_or_a_decimal() -> None:
    ours = [model for app in APPS for model in apps.get_app_config(app).get_models()]
    wrong = [
        str(field) for model in ours for field in model._meta.get_fields() if isinstance(field, models.FloatField | models.DecimalField)
    ]
    assert wrong == []
    assert len(ours) > 20


def test_no_module_has_a_name_that_says_nothing() -> None:
    assert [module for module in modules("config", *APPS) if Path(module).stem in VAGUE and module != "config/settings/base.py"] == []


@pytest.mark.parametrize("app", APPS)
def test_every_app_says_what_it_means(app: str) -> None:
    assert len((ROOT / app / "README.md").read_text().split()) > 50


def test_only_the_ledger_module_calls_the_ledgers_verbs() -> None:
    verbs = ledger_verbs()
    assert {"ledger_grant", "usage_authorize", "usage_record_many"} <= verbs
    called = re.compile(rf"\b(?:{'|'.join(verbs)})\s*\(")
    callers = {
        module
        for module in modules("config", *APPS)
        for node in ast.walk(tree(module))
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and called.search(node.value)
    }
    assert callers == {"billing/ledger.py"}


def test_the_tables_that_sql_makes_are_those_that_the_app_role_may_only_read() -> None:
    source = "".join(path.read_text() for app in APPS for path in (ROOT / app / "sql").glob("*.sql"))
    created = re.findall(r"^create table (\w+)", source, re.MULTILINE)
    assert set(created) == set(roles.LEDGER_TABLES)
