"""The ladder as arithmetic: steps rise with spending, end slowly, never flap, and never hold anybody for ever."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from metering import ladder
from metering.ladder import Policy, State, Step

NOON = datetime(2027, 6, 15, 12, tzinfo=UTC)
MINUTE = timedelta(minutes=1)
POLICY = Policy(
    floor_nanos=100,
    begins={Step.WARN: 3_000_000, Step.DEGRADE: 5_000_000, Step.SLOW: 8_000_000, Step.BLOCK: 12_000_000},
    window=10 * MINUTE,
    calm=10 * MINUTE,
    block=30 * MINUTE,
    release_below_ppm=500_000,
)

factors = st.lists(st.integers(1_000_001, 50_000_000), min_size=1, max_size=4, unique=True).map(sorted)
policies = st.builds(
    lambda steps, factors, floor, calm, block, below: Policy(
        floor_nanos=floor,
        begins=dict(zip(sorted(steps), factors, strict=False)),
        window=10 * MINUTE,
        calm=calm * MINUTE,
        block=block * MINUTE,
        release_below_ppm=below,
    ),
    st.permutations([Step.WARN, Step.DEGRADE, Step.SLOW, Step.BLOCK]),
    factors,
    st.integers(1, 10**10),
    st.integers(1, 60),
    st.integers(1, 60),
    st.integers(1, 999_999),
)
amounts = st.integers(0, 10**12)


def run(*spent: int, policy: Policy = POLICY, usual: int = 0, state: State | None = None, start: datetime = NOON) -> list[State]:
    """The states of a minute each."""
    states = [state or State()]
    for minute, nanos in enumerate(spent):
        now = start + minute * MINUTE
        states.append(ladder.climb(policy=policy, state=states[-1], usual_nanos=usual, spent_nanos=nanos, available_nanos=None, now=now))
    return states[1:]


def steps(states: list[State]) -> list[Step]:
    return [state.step for state in states]


class TestSteps:
    @pytest.mark.parametrize(
        ("spent", "step"),
        [(0, Step.NONE), (299, Step.NONE), (300, Step.WARN), (499, Step.WARN), (500, Step.DEGRADE), (800, Step.SLOW), (1_199, Step.SLOW),
         (1_200, Step.BLOCK), (10**15, Step.BLOCK)],
    )  # fmt: skip
    def test_a_step_begins_at_its_multiple_of_the_floor_where_less_is_usual(self, spent: int, step: Step) -> None:
        assert steps(run(spent)) == [step]

    def test_where_more_is_usual_a_step_begins_at_its_multiple_of_that(self) -> None:
        assert steps(run(2_999, usual=1_000)) == [Step.NONE]
        assert steps(run(3_000, usual=1_000)) == [Step.WARN]

    def test_a_policy_without_a_step_does_not_take_it(self) -> None:
        only = Policy(100, {Step.BLOCK: 12_000_000}, 10 * MINUTE, 10 * MINUTE, 30 * MINUTE, 500_000)
        assert steps(run(1_199, policy=only)) == [Step.NONE]

    def test_credit_that_would_soon_be_gone_warns_and_does_no_more(self) -> None:
        soon = Policy(100, POLICY.begins, 10 * MINUTE, 10 * MINUTE, 30 * MINUTE, 500_000, empty=60 * MINUTE)
        for spent, available, step in ((150, 900, Step.WARN), (150, 901 * 6, Step.NONE), (99, 1, Step.NONE), (150, 0, Step.WARN)):
            assert ladder.reached(policy=soon, usual_nanos=0, spent_nanos=spent, available_nanos=available) == step
        assert ladder.empty_in(policy=soon, spent_nanos=150, available_nanos=900) == 60 * MINUTE
        assert ladder.empty_in(policy=soon, spent_nanos=0, available_nanos=900) is None

    @given(policy=policies, usual=amounts, one=amounts, other=amounts)
    def test_more_spending_is_never_a_lower_step(self, policy: Policy, usual: int, one: int, other: int) -> None:
        less, more = sorted((one, other))
        reach = [ladder.reached(policy=policy, usual_nanos=usual, spent_nanos=spent, available_nanos=None) for spent in (less, more)]
        assert reach[0] <= reach[1]

    @given(policy=policies, usual=amounts, before=st.lists(amounts, max_size=30), one=amounts, other=amounts)
    def test_from_any_state_more_spending_never_ends_lower(
        self, policy: Policy, usual: int, before: list[int], one: int, other: int
    ) -> None:
        state = run(*before, policy=policy, usual=usual)[-1] if before else State()
        less, more = sorted((one, other))
        low, high = (run(spent, policy=policy, usual=usual, state=state, start=NOON + len(before) * MINUTE)[0] for spent in (less, more))
        assert low.step <= high.step

    @given(policy=policies, usual=amounts, spent=st.lists(amounts, max_size=40))
    def test_looking_twice_at_one_moment_changes_nothing(self, policy: Policy, usual: int, spent: list[int]) -> None:
        for minute, state in enumerate(states := run(*spent, policy=policy, usual=usual)):
            again = run(spent[minute], policy=policy, usual=usual, state=state, start=NOON + minute * MINUTE)
            assert again == [states[minute]]


class TestHysteresis:
    def test_a_step_goes_on_below_its_beginning_and_ends_after_ten_calm_minutes(self) -> None:
        states = run(300, 299, 151, 150, *[149] * 11)
        assert steps(states) == [Step.WARN] * 14 + [Step.NONE]
        assert ladder.releases_at(policy=POLICY, state=states[4]) == NOON + 14 * MINUTE
        assert ladder.releases_at(policy=POLICY, state=states[3]) is None

    def test_calm_that_is_interrupted_begins_anew(self) -> None:
        assert steps(run(300, *[0] * 10, 150, *[0] * 10)) == [Step.WARN] * 22
        assert steps(run(300, *[0] * 10, 150, *[0] * 11))[-1] == Step.NONE

    def test_a_step_ends_at_the_one_that_spending_is_still_high_enough_for(self) -> None:
        assert steps(run(800, *[300] * 11)) == [Step.SLOW] * 11 + [Step.DEGRADE]  # 250 is where a cheaper model ends

    @given(policy=policies, usual=amounts, spent=st.lists(amounts, max_size=200))
    def test_between_two_ways_down_lies_the_calm_or_a_block(self, policy: Policy, usual: int, spent: list[int]) -> None:
        states = run(*spent, policy=policy, usual=usual)
        down = [minute for minute, (one, other) in enumerate(pairwise(states)) if other.step < one.step]
        least = min(policy.calm, policy.block)
        assert all((later - earlier) * MINUTE >= least for earlier, later in pairwise(down))

    @given(policy=policies, usual=amounts, spent=st.lists(amounts, max_size=60))
    def test_whatever_was_spent_everything_ends_by_itself_once_nothing_is(self, policy: Policy, usual: int, spent: list[int]) -> None:
        minutes = int((ladder.LONGEST_BLOCK + policy.calm) / MINUTE) + 2
        state = run(*spent, policy=policy, usual=usual)[-1] if spent else State()
        for minute in (0, minutes, 2 * minutes):
            [state] = run(0, policy=policy, usual=usual, state=state, start=NOON + (len(spent) + minute) * MINUTE)
        assert state.step == Step.NONE


class TestBlocks:
    def test_a_block_ends_by_itself_whatever_is_spent_meanwhile(self) -> None:
        states = run(1_200, *[5_000] * 29, 0)
        assert steps(states) == [Step.BLOCK] * 30 + [Step.NONE]
        assert states[0].blocked_until == NOON + 30 * MINUTE

    def test_each_further_block_of_a_day_lasts_twice_as_long_up_to_a_day(self) -> None:
        state, now, lasted = State(), NOON, []
        for _ in range(8):
            [state] = run(1_200, state=state, start=now)
            assert state.blocked_until is not None
            lasted.append((state.blocked_until - now) / MINUTE)
            [state] = run(0, state=state, start=state.blocked_until)
            assert state.step == Step.NONE
            assert state.blocked_until is not None
            now = state.blocked_until + MINUTE
        assert lasted == [30, 60, 120, 240, 480, 960, 1440, 1440]
        [state] = run(1_200, state=state, start=now + 2 * ladder.DAY)
        assert state.blocked_until == now + 2 * ladder.DAY + 30 * MINUTE

    def test_a_loop_that_goes_on_after_the_block_is_blocked_again_at_once(self) -> None:
        assert steps(run(*[1_200] * 40)) == [Step.BLOCK] * 40


class TestRelease:
    def test_what_a_person_released_does_not_come_back_for_the_same_spending(self) -> None:
        [state] = run(1_500)
        released = ladder.release(state=state, now=NOON)
        assert steps(run(*[3_000] * 60, state=released)) == [Step.NONE] * 60
        assert steps(run(0, 3_000, state=released)) == [Step.NONE] * 2  # nor when it goes on after a pause

    def test_more_than_twice_of_it_is_another_matter(self) -> None:
        [state] = run(1_500)
        assert steps(run(3_001, state=ladder.release(state=state, now=NOON))) == [Step.BLOCK]

    def test_a_day_later_it_is_not_excused_any_more(self) -> None:
        [state] = run(1_500)
        released = ladder.release(state=state, now=NOON)
        assert steps(run(1_500, state=released, start=NOON + ladder.DAY - MINUTE)) == [Step.NONE]
        assert steps(run(1_500, state=released, start=NOON + ladder.DAY)) == [Step.BLOCK]


class TestUsual:
    def test_it_is_the_median_of_the_days_busiest_windows(self) -> None:
        assert ladder.usual(daily_peaks=[5, 1, 3]) == 3
        assert ladder.usual(daily_peaks=[4, 1, 3, 2]) == 2

    def test_with_too_few_days_nothing_is_usual_yet(self) -> None:
        assert ladder.usual(daily_peaks=[5, 5]) is None

    @given(peaks=st.lists(st.integers(1, 10**9), min_size=3, max_size=14), wild=st.integers(10**10, 10**15))
    def test_a_few_wild_days_do_not_move_it_beyond_what_ordinary_days_had(self, peaks: list[int], wild: int) -> None:
        days = peaks + [wild] * (len(peaks) - 1)
        assert (ladder.usual(daily_peaks=days) or 0) <= max(peaks)
