"""The ladder of the runaway guard, as arithmetic: standard library only, integers only, no clock of its own.

    threshold   what a step begins at
    reached     the highest step that an amount reaches
    climb       the state a moment later
    release     a person ends it
    usual       what an account usually spends in a window, at its most

A step is taken at once, and left only after spending stayed below ``release_below_ppm`` of where the step begins for the whole of
``calm``. So within ``calm`` there is at most one way down, whatever spending does in between. A block ends by itself; each
further block within a day of the last lasts twice as long, so a loop that goes on after each block costs less and less.

Amounts are nanos of the wallet's unit, spent within the last ``window``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from enum import IntEnum
from typing import Final

PPM: Final = 1_000_000
DAY: Final = timedelta(days=1)
#: What a person released is excused for so long, and up to so many times the most it had spent by then.
EXCUSED_FOR: Final = DAY
EXCUSED_TIMES: Final = 2
LONGEST_BLOCK: Final = DAY
#: With fewer days than these nothing is usual yet, and only the floor counts.
LEAST_DAYS: Final = 3


class Step(IntEnum):
    """What is done, from nothing to everything."""

    NONE = 0
    WARN = 1
    DEGRADE = 2
    SLOW = 3
    BLOCK = 4


@dataclass(frozen=True, slots=True)
class Policy:
    """When each step begins, in parts per million of the usual spend of a window, which is taken as ``floor_nanos`` where it is less.

    ``empty``: a warning too where the credit would last no longer, at a speed above the floor. A step that is not in ``begins`` is not
    taken.
    """

    floor_nanos: int
    begins: Mapping[Step, int]
    window: timedelta
    calm: timedelta
    block: timedelta
    release_below_ppm: int
    empty: timedelta | None = None


@dataclass(frozen=True, slots=True)
class State:
    """Where a subject stands. ``calm_since``: spending is low enough to go down. ``peak_nanos``: the most of this spike.

    ``blocks``: how many so far, each within a day of the one before; the last of them ends, or ended, at ``blocked_until``. Up to
    ``excused_nanos`` nothing is done until ``excused_until``.
    """

    step: Step = Step.NONE
    since: datetime | None = None
    calm_since: datetime | None = None
    peak_nanos: int = 0
    blocks: int = 0
    blocked_until: datetime | None = None
    excused_until: datetime | None = None
    excused_nanos: int = 0


def threshold(*, policy: Policy, usual_nanos: int, step: Step) -> int | None:
    """What has to be spent in a window for ``step``, rounded up; None where the policy has no such step."""
    factor = policy.begins.get(step)
    return None if factor is None else -(-max(usual_nanos, policy.floor_nanos) * factor // PPM)


def empty_in(*, policy: Policy, spent_nanos: int, available_nanos: int) -> timedelta | None:
    """How long ``available_nanos`` lasts at the speed of the last window, in whole minutes; None where nothing is spent."""
    if spent_nanos <= 0:
        return None
    minutes = max(available_nanos, 0) * int(policy.window.total_seconds()) // spent_nanos // 60
    return timedelta(minutes=min(minutes, 10**6))


def reached(*, policy: Policy, usual_nanos: int, spent_nanos: int, available_nanos: int | None, share_ppm: int = PPM) -> Step:
    """The highest step that ``spent_nanos`` reaches, with every step beginning at ``share_ppm`` of where it does. Never less for more.

    ``available_nanos`` None: no wallet is charged.
    """
    found = Step.NONE
    for step in Step:
        begins = threshold(policy=policy, usual_nanos=usual_nanos, step=step)
        if begins is not None and spent_nanos * PPM >= begins * share_ppm:
            found = max(found, step)
    if policy.empty is not None and available_nanos is not None and spent_nanos * PPM >= policy.floor_nanos * share_ppm:
        lasts = empty_in(policy=policy, spent_nanos=spent_nanos, available_nanos=available_nanos)
        if lasts is not None and lasts <= policy.empty:
            found = max(found, Step.WARN)
    return found


def climb(*, policy: Policy, state: State, usual_nanos: int, spent_nanos: int, available_nanos: int | None, now: datetime) -> State:
    """``state`` after a look at what was spent in the window that ends ``now``. Looking twice at the same moment changes nothing more."""
    if state.excused_until is not None:
        if now < state.excused_until and spent_nanos <= state.excused_nanos:
            return state
        state = replace(state, excused_until=None, excused_nanos=0)
    blocked = state.step == Step.BLOCK and state.blocked_until is not None
    if blocked and state.blocked_until is not None and now < state.blocked_until:
        return replace(state, peak_nanos=max(state.peak_nanos, spent_nanos))
    up = reached(policy=policy, usual_nanos=usual_nanos, spent_nanos=spent_nanos, available_nanos=available_nanos)
    if up > state.step or (blocked and up == Step.BLOCK):
        return _up(policy, state, up, spent_nanos, now)
    low = reached(
        policy=policy,
        usual_nanos=usual_nanos,
        spent_nanos=spent_nanos,
        available_nanos=available_nanos,
        share_ppm=policy.release_below_ppm,
    )
    if blocked:  # its time is over
        return _down(state, min(low, Step.SLOW), spent_nanos, now)
    if low >= state.step:
        return replace(state, calm_since=None, peak_nanos=max(state.peak_nanos, spent_nanos) if state.step else 0)
    calm_since = state.calm_since or now
    if now - calm_since < policy.calm:
        return replace(state, calm_since=calm_since)
    return _down(state, low, spent_nanos, now)


def release(*, state: State, now: datetime) -> State:
    """A person said that this spending is all right: no step for a day, unless it becomes twice what it was."""
    return State(excused_until=now + EXCUSED_FOR, excused_nanos=EXCUSED_TIMES * state.peak_nanos)


def releases_at(*, policy: Policy, state: State) -> datetime | None:
    """When the step ends by itself, if spending stays as low as it is; None where it is not low, or there is none."""
    if state.step == Step.BLOCK:
        return state.blocked_until
    return state.calm_since + policy.calm if state.calm_since is not None and state.step else None


def usual(*, daily_peaks: Sequence[int]) -> int | None:
    """The median of the busiest windows of an account's active days, the lower of two; None with too few days to tell.

    A median, because up to half of the days may have been wild without moving it; of each day's busiest window, because ordinary work comes
    in bursts and it is bursts that a burst is compared with.
    """
    if len(daily_peaks) < LEAST_DAYS:
        return None
    return sorted(daily_peaks)[(len(daily_peaks) - 1) // 2]


def _up(policy: Policy, state: State, step: Step, spent_nanos: int, now: datetime) -> State:
    taken = replace(state, step=step, since=now, calm_since=None, peak_nanos=max(state.peak_nanos, spent_nanos))
    if step < Step.BLOCK:
        return taken
    again = state.blocks if state.blocked_until is not None and now - state.blocked_until <= DAY else 0
    lasts = min(policy.block * 2 ** min(again, 11), LONGEST_BLOCK)
    return replace(taken, blocks=again + 1, blocked_until=now + lasts)


def _down(state: State, step: Step, spent_nanos: int, now: datetime) -> State:
    return replace(state, step=step, since=now if step else None, calm_since=None, peak_nanos=spent_nanos if step else 0)
