"""The review lists: their figures, that a point is gone through once a period, and garbage."""

from __future__ import annotations

import re
from datetime import UTC, date, datetime, timedelta

import pytest
from django.contrib.admin.models import LogEntry
from django.test import Client
from django.urls import reverse
from django.utils import timezone

from analytics import reviews
from analytics.models import Review
from tests.factories import make_product
from tests.test_admin import staff, superuser, text

__all__ = ["superuser"]  # a fixture
NOW = datetime(2026, 3, 11, 12, tzinfo=UTC)  # a Wednesday


def item(slug: str) -> reviews.Item:
    return next(one for one in reviews.ITEMS if one.slug == slug)


def test_the_documents_lists_are_there_and_each_point_has_a_name_of_its_own() -> None:
    slugs = [one.slug for one in reviews.ITEMS]
    assert len(slugs) == len(set(slugs))
    assert {one.list for one in reviews.ITEMS} == set(reviews.LISTS)


@pytest.mark.parametrize(("of", "first"), [("daily", 11), ("weekly", 9), ("monthly", 1)])
def test_a_period_is_a_day_a_week_from_monday_or_a_month(of: str, first: int) -> None:
    assert reviews.period(of=of, now=NOW) == date(2026, 3, first)


@pytest.mark.django_db
def test_every_point_with_a_figure_has_one_now() -> None:
    make_product()
    for of in reviews.LISTS:
        for point in reviews.read(of=of, now=NOW):
            assert all(figure.text for figure in point.figures)
    assert reviews.figures(item=item("launch-conversion"), now=NOW)[0].text == "0 signed up this month, 0 of them pay for a plan"
    assert reviews.figures(item=item("feedback"), now=NOW) == ()


@pytest.mark.django_db
def test_a_point_is_gone_through_once_a_period_and_the_figure_is_kept() -> None:
    first = reviews.record(item=item("churn"), note="two moved away", actor="ada", now=NOW)
    again = reviews.record(item=item("churn"), note="", actor="bob", now=NOW + timedelta(days=3))
    later = reviews.record(item=item("churn"), note="", actor="bob", now=NOW + timedelta(days=30))
    assert (again, first.figure, again.reviewed_by) == (first, "0 of 0 customers", "ada")
    assert later.period == date(2026, 4, 1)
    [point] = [point for point in reviews.read(of="monthly", now=NOW) if point.item.slug == "churn"]
    assert point.review == first
    once = reviews.record(item=item("launch-margin"), note="", actor="ada", now=NOW)
    assert reviews.record(item=item("launch-margin"), note="", actor="bob", now=NOW + timedelta(days=300)) == once


@pytest.mark.django_db
class TestPage:
    PAGE = "/admin/analytics/margin/reviews/"

    def test_it_lists_what_waits_and_notes_who_went_through_it(self, superuser: Client) -> None:
        assert reverse("admin:analytics_reviews") == self.PAGE
        before = re.search(r"<b>([0-9]+) points?</b>", text(superuser, self.PAGE))
        assert superuser.post(self.PAGE, {"item": "feedback", "note": "<b>all well</b>"}).status_code == 302
        page = text(superuser, self.PAGE)
        after = re.search(r"<b>([0-9]+) points?</b>", page)
        assert before is not None
        assert after is not None
        assert int(after[1]) == int(before[1]) - 1
        assert "&lt;b&gt;all well&lt;/b&gt;" in page
        review = Review.objects.get(item="feedback")
        assert (
            LogEntry.objects.filter(object_id=str(review.pk), change_message__startswith="Went through: What customers wrote").count() == 1
        )
        assert (review.period, "@example.com" in review.reviewed_by) == (timezone.now().date(), True)

    @pytest.mark.parametrize(("said", "status"), [({}, 404), ({"item": "%00"}, 404), ({"item": "feedback", "note": "x" * 501}, 302),
                                                  ({"item": "feedback", "note": "a\0b"}, 302)])  # fmt: skip
    def test_garbage_notes_nothing(self, superuser: Client, said: dict[str, str], status: int) -> None:
        assert superuser.post(self.PAGE, said).status_code == status
        assert not Review.objects.exists()

    def test_only_who_may_sees_and_notes(self) -> None:
        looks = staff("analytics.view_review")
        assert looks.get(self.PAGE).status_code == 200
        assert looks.post(self.PAGE, {"item": "feedback"}).status_code == 403
        assert staff("accounts.view_account").get(self.PAGE).status_code == 403
        assert Client().get(self.PAGE).status_code == 302
