"""``manage.py project FILE|EXAMPLE [--json]``: see :mod:`analytics.scenarios`."""

from __future__ import annotations

import json
from argparse import ArgumentParser
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from django.core.management.base import BaseCommand, CommandError
from django.utils import timezone

from analytics import projections, scenarios
from analytics.projection_api import answer


class Command(BaseCommand):
    help = "Project a month: what so many users, packs and costs would earn, with the prices of the catalog."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("scenario", help=f"A file of TOML or JSON, or an example: {', '.join(scenarios.SHIPPED)}.")
        parser.add_argument("--json", action="store_true", help="Answer as the API does.")
        parser.add_argument("--show", action="store_true", help="Print the example's file, to save and change it.")

    def handle(self, *args: Any, scenario: str, show: bool, **options: Any) -> None:
        text = _text(scenario)
        if show:
            self.stdout.write(text.decode(errors="replace"), ending="")
            return
        try:
            found = scenarios.compute(scenario=scenarios.parse(text), now=timezone.now())
        except scenarios.InvalidScenario as error:
            raise CommandError(str(error)) from None
        self.stdout.write(_as_json(found) if options["json"] else "\n".join(_lines(found)))


def _text(name: str) -> bytes:
    if name in scenarios.SHIPPED:
        return scenarios.SHIPPED[name].encode()
    try:
        with Path(name).open("rb") as file:
            return file.read(scenarios.MAX_BYTES + 1)
    except (OSError, ValueError) as error:
        raise CommandError(f"{name[:200]!r} is no example, and cannot be read: {error}") from None


def _as_json(found: projections.Projection) -> str:
    return json.dumps(answer(found).model_dump(mode="json"), indent=2, ensure_ascii=False)


def _lines(found: projections.Projection) -> Sequence[str]:
    lines = [found.title, "", "Revenue", *(_line(line) for line in found.revenue), f"  Total: {projections.dollars(found.revenue_nanos)}"]
    lines += [
        "",
        "Cost",
        *(_line(line) for line in found.costs),
        f"  Total: {projections.said(found.cost)}",
        "",
        f"Profit: {projections.said(found.profit)}",
    ]
    lines.append(f"Margin: {_percents(found.margin_best, found.margin_worst)}")
    after = _percents(found.margin_after_fees_best, found.margin_after_fees_worst)
    lines.append(f"After payment fees: {after} ({found.fees.says})")
    for plan in found.plans:
        limit = f"; {plan.at_limit} % at the limit of its cost tier" if plan.at_limit is not None else ""
        lines.append(f"{plan.name}: {_percents(plan.best, plan.worst)}{limit}")
    if (even := found.break_even) is not None:
        users = " to ".join(dict.fromkeys("never" if each is None else f"{each:,}" for each in (even.best, even.worst)))
        lines.append(f"Break-even: {users} paying users ({even.says})")
    return [*lines, *(f"{'! ' if each.wrong else ''}{each.says} {each.act}".rstrip() for each in found.advice)]


def _line(line: projections.Line) -> str:
    return f"  {line.name}: {line.says} [{line.source}]"


def _percents(best: object, worst: object) -> str:
    return " to ".join(dict.fromkeys("–" if each is None else f"{each} %" for each in (worst, best)))
