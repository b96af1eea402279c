"""Billing periods keep their anchor day."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from billing.periods import anniversary, period_at

INSTANTS = st.datetimes(datetime(1900, 1, 1), datetime(2400, 1, 1), timezones=st.just(UTC))  # noqa: DTZ001 (the zone is given beside)


@pytest.mark.parametrize(
    ("months", "day"),
    [(0, (2028, 1, 31)), (1, (2028, 2, 29)), (2, (2028, 3, 31)), (3, (2028, 4, 30)), (13, (2029, 2, 28)), (-2, (2027, 11, 30))],
)
def test_a_31st_stays_a_31st(months: int, day: tuple[int, int, int]) -> None:
    assert anniversary(datetime(2028, 1, 31, 9, tzinfo=UTC), months=months) == datetime(*day, 9, tzinfo=UTC)


def test_29_february_comes_back_in_leap_years() -> None:
    anchor = datetime(2024, 2, 29, tzinfo=UTC)
    assert [anniversary(anchor, months=12 * years).day for years in range(1, 5)] == [28, 28, 28, 29]


@given(anchor=INSTANTS, at=INSTANTS, months=st.sampled_from([1, 3, 12]))
def test_every_instant_is_in_exactly_one_period(anchor: datetime, at: datetime, months: int) -> None:
    start, end = period_at(anchor, at, months=months)
    assert start <= at < end
    assert period_at(anchor, start, months=months) == (start, end)
    assert period_at(anchor, end, months=months)[0] == end
