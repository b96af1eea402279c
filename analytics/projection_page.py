"""The projection page: an example or a scenario of one's own, computed in the page, and saved as a file for another day."""

from __future__ import annotations

from typing import Any

from django import forms
from django.contrib import admin
from django.core.exceptions import PermissionDenied
from django.http import HttpRequest, HttpResponse
from django.template.response import TemplateResponse
from django.utils import timezone
from unfold.widgets import UnfoldAdminTextareaWidget

from analytics import projections, scenarios

_FIRST = next(iter(scenarios.SHIPPED))


class ScenarioForm(forms.Form):
    """A scenario as text; ``parsed`` once it is valid."""

    scenario = forms.CharField(
        max_length=scenarios.MAX_BYTES,
        strip=False,
        widget=UnfoldAdminTextareaWidget(attrs={"rows": 24, "spellcheck": "false", "class": "tg-pre", "aria-describedby": "scenario-help"}),
    )
    parsed: scenarios.Scenario

    def clean_scenario(self) -> str:
        text: str = self.cleaned_data["scenario"]
        try:
            self.parsed = scenarios.parse(text)
        except scenarios.InvalidScenario as error:
            raise forms.ValidationError([_said(problem) for problem in error.problems]) from None
        return text


def projection_view(request: HttpRequest) -> HttpResponse:
    """Computes what is posted, or the example that is named. Reads prices alone and stores nothing."""
    if not request.user.has_perm("analytics.view_margin"):
        raise PermissionDenied
    example = request.GET.get("example", "")
    example = example if example in scenarios.SHIPPED else _FIRST
    form = ScenarioForm(request.POST if request.method == "POST" else {"scenario": scenarios.SHIPPED[example]})
    context: dict[str, Any] = {
        "title": "Projection", "form": form, "example": example, "examples": list(scenarios.SHIPPED), "found": None,
    }  # fmt: skip
    if form.is_valid():
        if "save" in request.POST:
            headers = {"Content-Disposition": 'attachment; filename="scenario.toml"', "X-Content-Type-Options": "nosniff"}
            return HttpResponse(form.cleaned_data["scenario"], content_type="application/toml; charset=utf-8", headers=headers)
        try:
            found = scenarios.compute(scenario=form.parsed, now=timezone.now())
        except scenarios.InvalidScenario as error:
            for problem in error.problems:
                form.add_error("scenario", _said(problem))
        else:
            context |= _shown(found) | {"notes": form.parsed.notes}
    return TemplateResponse(request, "admin/analytics/projection.html", admin.site.each_context(request) | context)


def _said(problem: dict[str, str]) -> str:
    return f"{problem['field']}: {problem['message']}"


def _shown(found: projections.Projection) -> dict[str, Any]:
    even = found.break_even
    return {
        "found": found,
        "revenue": projections.dollars(found.revenue_nanos),
        "cost": projections.said(found.cost),
        "profit": projections.said(found.profit),
        "loss": found.profit.worst < 0,
        "margin": _percents(found.margin_worst, found.margin_best),
        "after_fees": _percents(found.margin_after_fees_worst, found.margin_after_fees_best),
        "tables": [
            ("Revenue", found.revenue, projections.dollars(found.revenue_nanos)),
            ("Cost", found.costs, projections.said(found.cost)),
        ],
        "break_even": even and " to ".join(dict.fromkeys("never" if each is None else f"{each:,}" for each in (even.best, even.worst))),
        "plans": [(plan.name, _percents(plan.worst, plan.best), _percents(plan.at_limit)) for plan in found.plans],
        "wrong": sum(1 for each in found.advice if each.wrong),
    }


def _percents(*values: object) -> str:
    return " to ".join(dict.fromkeys("–" if each is None else f"{each} %".replace("-", "\N{MINUS SIGN}") for each in values))
