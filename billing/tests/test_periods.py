"""Periods: billing periods keep their anchor day, and calendar periods follow each other in every time zone, whatever its clocks do."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta, tzinfo
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from billing import periods
from billing.periods import anniversary, period_at

INSTANTS = st.datetimes(datetime(1900, 1, 1), datetime(2400, 1, 1), timezones=st.just(UTC))  # noqa: DTZ001 (the zone is given beside)
#: Whole, half and three-quarter hours, both hemispheres, midnights that do not exist or come twice, dates that were left out or came twice.
ZONES = (
    "UTC", "Europe/Paris", "America/New_York", "America/Sao_Paulo", "America/St_Johns", "America/Havana", "Asia/Kathmandu",
    "Asia/Beirut", "Australia/Lord_Howe", "Africa/Casablanca", "Pacific/Apia", "America/Toronto",
)  # fmt: skip
CALENDAR = (periods.hour_at, periods.day_at, periods.week_at, periods.month_at)
SECOND = timedelta(seconds=1)


class TestAnniversaries:
    @pytest.mark.parametrize(
        ("months", "day"),
        [(0, (2028, 1, 31)), (1, (2028, 2, 29)), (2, (2028, 3, 31)), (3, (2028, 4, 30)), (13, (2029, 2, 28)), (-2, (2027, 11, 30))],
    )
    @pytest.mark.failure(43)
    def test_a_31st_stays_a_31st(self, months: int, day: tuple[int, int, int]) -> None:
        assert anniversary(datetime(2028, 1, 31, 9, tzinfo=UTC), months=months) == datetime(*day, 9, tzinfo=UTC)

    @pytest.mark.failure(44)
    def test_29_february_comes_back_in_leap_years_and_december_turns_the_year(self) -> None:
        anchor = datetime(2024, 2, 29, tzinfo=UTC)
        assert [anniversary(anchor, months=12 * years).day for years in range(1, 5)] == [28, 28, 28, 29]
        turn = datetime(2027, 12, 31, 23, 59, tzinfo=UTC)
        assert [anniversary(turn, months=months).date().isoformat() for months in (0, 1, 2)] == ["2027-12-31", "2028-01-31", "2028-02-29"]

    @pytest.mark.failure(43)
    @pytest.mark.failure(44)
    @pytest.mark.parametrize("zone", ZONES)
    def test_every_anchor_of_400_years_is_where_stripe_has_it_and_never_drifts(self, zone: str) -> None:
        """Stripe's rule: the anchor's day of the month, or the month's last where it is shorter. The month lengths are Pope Gregory's."""
        clock = ZoneInfo(zone)
        for day in range(1, 32):
            anchor = datetime(2000, 1, day, 2, 30, tzinfo=clock)
            assert [anniversary(anchor, months=months) for months in range(4_800)] == [
                datetime(year, month, min(day, length), 2, 30, tzinfo=clock) for year, month, length in MONTHS
            ]

    @given(anchor=INSTANTS, at=INSTANTS, months=st.sampled_from([1, 3, 12]))
    def test_every_instant_is_in_exactly_one_period(self, anchor: datetime, at: datetime, months: int) -> None:
        start, end = period_at(anchor, at, months=months)
        assert start <= at < end
        assert period_at(anchor, start, months=months) == (start, end)
        assert period_at(anchor, end, months=months)[0] == end

    @given(anchor=INSTANTS, at=INSTANTS, weeks=st.integers(1, 5))
    def test_and_in_exactly_one_run_of_weeks(self, anchor: datetime, at: datetime, weeks: int) -> None:
        start, end = periods.weeks_at(anchor, at, weeks=weeks)
        assert start <= at < end
        assert (start - anchor) % timedelta(weeks=weeks) == timedelta()
        assert periods.weeks_at(anchor, end, weeks=weeks) == (end, end + timedelta(weeks=weeks))


#: Year, month and length of the 4,800 months from 2000 to 2399.
MONTHS = [
    (year, month, 29 if month == 2 and year % 4 == 0 and (year % 100 != 0 or year % 400 == 0) else length)
    for year in range(2000, 2400)
    for month, length in enumerate((31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31), start=1)
]


def changes(zone: tzinfo, first: int, last: int) -> list[datetime]:
    """The instants at which a zone's clocks change, to the second, found by looking every six hours: without what is tested."""
    found, moment, end = [], datetime(first, 1, 1, tzinfo=UTC), datetime(last, 1, 1, tzinfo=UTC)
    while moment < end:
        after = moment + timedelta(hours=6)
        low, high = moment, after
        while high - low > SECOND and low.astimezone(zone).utcoffset() != after.astimezone(zone).utcoffset():
            middle = low + (high - low) // 2 // SECOND * SECOND
            low, high = (middle, high) if middle.astimezone(zone).utcoffset() == low.astimezone(zone).utcoffset() else (low, middle)
        if high != after:
            found.append(high)
        moment = after
    return found


class TestCalendar:
    @pytest.mark.failure(45)
    @pytest.mark.failure(46)
    @pytest.mark.parametrize("zone", ZONES)
    def test_around_every_change_of_the_clocks_every_instant_is_in_exactly_one_period(self, zone: str) -> None:
        clock = ZoneInfo(zone)
        for change in changes(clock, 1985, 2027) if zone != "America/Toronto" else changes(clock, 1918, 1922):
            for period in CALENDAR:
                start, end = period(change - timedelta(hours=30), clock)
                while start < change + timedelta(hours=30):
                    assert start < end
                    for inside in (start, start + (end - start) // 2, end - timedelta.resolution):
                        assert period(inside, clock) == (start, end), (inside, period)
                    before, (start, end) = end, period(end, clock)
                    assert start == before

    @pytest.mark.failure(45)
    @settings(max_examples=300, deadline=None, derandomize=True)
    @given(
        at=st.datetimes(datetime(1900, 1, 1), datetime(2300, 1, 1), timezones=st.just(UTC)),  # noqa: DTZ001 (the zone is given beside)
        zone=st.sampled_from(ZONES),
        period=st.sampled_from(CALENDAR),
    )
    def test_and_so_it_is_at_any_time(self, at: datetime, zone: str, period: Callable[[datetime, tzinfo], periods.Period]) -> None:
        clock = ZoneInfo(zone)
        start, end = period(at, clock)
        assert start <= at < end
        assert (start.tzinfo, end.tzinfo) == (UTC, UTC)
        assert period(start, clock) == period(end - timedelta.resolution, clock) == (start, end)
        assert period(end, clock)[0] == end

    @pytest.mark.failure(46)
    @pytest.mark.parametrize(
        ("zone", "noon", "start", "hours"),
        [
            ("Europe/Paris", (2027, 3, 28), "2027-03-27T23:00", 23),
            ("Europe/Paris", (2027, 10, 31), "2027-10-30T22:00", 25),
            ("America/Sao_Paulo", (2018, 11, 4), "2018-11-04T03:00", 23),  # its midnight does not exist
            ("America/Havana", (2027, 11, 7), "2027-11-07T04:00", 25),  # its midnight comes twice
            ("America/Toronto", (1919, 3, 31), "1919-03-31T04:30", 23.5),  # from 23:30 to 0:30
            ("Australia/Lord_Howe", (2027, 10, 3), "2027-10-02T13:30", 23.5),
            ("Pacific/Apia", (2011, 12, 31), "2011-12-30T10:00", 24),  # 30 December was left out
            ("Asia/Kathmandu", (2027, 5, 5), "2027-05-04T18:15", 24),
        ],
    )
    def test_a_day_of_the_clock_has_its_own_hours(self, zone: str, noon: tuple[int, int, int], start: str, hours: float) -> None:
        clock = ZoneInfo(zone)
        found = periods.day_at(datetime(*noon, 12, tzinfo=clock), clock)
        assert found == (datetime.fromisoformat(f"{start}+00:00"), datetime.fromisoformat(f"{start}+00:00") + timedelta(hours=hours))

    @pytest.mark.failure(46)
    def test_a_minute_of_tomorrow_before_the_clocks_go_back_to_today_is_tomorrow_and_so_is_the_hour_that_comes_again(self) -> None:
        """St John's went from 0:01 back to 23:01: the date of the wall changed three times, the day begins once."""
        clock = ZoneInfo("America/St_Johns")
        midnight = datetime(2010, 11, 7, 2, 30, tzinfo=UTC)
        assert (midnight + timedelta(minutes=30)).astimezone(clock).date().isoformat() == "2010-11-06"
        for minutes in (0, 1, 30, 59, 61):
            assert periods.day_at(midnight + timedelta(minutes=minutes), clock)[0] == midnight
        assert periods.day_at(midnight - timedelta.resolution, clock)[1] == midnight

    @pytest.mark.failure(46)
    def test_an_hour_that_the_clocks_show_twice_is_two_hours_and_one_that_they_leave_out_is_none(self) -> None:
        paris = ZoneInfo("Europe/Paris")
        twice = [datetime(2027, 10, 31, 2, 30, tzinfo=paris, fold=fold) for fold in (0, 1)]
        assert [periods.hour_at(at, paris)[0].hour for at in twice] == [0, 1]
        gap = datetime(2027, 3, 28, 1, tzinfo=UTC)
        assert periods.hour_at(gap - SECOND, paris) == (gap - timedelta(hours=1), gap)
        assert periods.hour_at(gap, paris) == (gap, gap + timedelta(hours=1))

    def test_hours_of_half_hour_zones_are_their_own_and_hours_of_utc_are_utcs(self) -> None:
        at = datetime(2027, 5, 5, 9, 20, tzinfo=UTC)
        assert periods.hour_at(at)[0] == at.replace(minute=0)
        assert periods.hour_at(at, ZoneInfo("Asia/Kathmandu"))[0] == at.replace(minute=15)

    def test_weeks_begin_on_monday_and_months_on_the_first_of_the_zone(self) -> None:
        auckland = ZoneInfo("Pacific/Auckland")
        at = datetime(2028, 2, 29, 12, tzinfo=UTC)  # there it is 1 March, a Wednesday
        assert [moment.astimezone(auckland).isoformat() for moment in periods.week_at(at, auckland)] == [
            "2028-02-28T00:00:00+13:00", "2028-03-06T00:00:00+13:00",
        ]  # fmt: skip
        assert periods.month_at(at, auckland)[0].astimezone(auckland).isoformat() == "2028-03-01T00:00:00+13:00"
        assert periods.month_at(at) == (datetime(2028, 2, 1, tzinfo=UTC), datetime(2028, 3, 1, tzinfo=UTC))

    def test_a_rolling_window_lets_go_of_what_is_as_old_as_it_is_long_and_lifetime_of_nothing(self) -> None:
        now = datetime(2028, 2, 29, 12, tzinfo=UTC)
        assert periods.rolling(now, timedelta(days=30)) == (datetime(2028, 1, 30, 12, tzinfo=UTC), now)
        assert periods.LIFETIME[0] < now < periods.LIFETIME[1]
