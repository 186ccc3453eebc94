"""The throttle: sizes of steps, rests between them, what is waited for."""

from __future__ import annotations

import pytest

from operations.throttle import Lag, Lags, Limits, Throttle

QUIET = 0.001
"""Seconds of a commit when nobody else writes."""


def grown(throttle: Throttle, steps: int = 60, step_s: float = 0.02) -> None:
    for _ in range(steps):
        throttle.settled(throttle.size, step_s, QUIET)


def test_steps_begin_small_and_grow_to_the_most_while_they_are_quick() -> None:
    throttle = Throttle(500)
    first = throttle.size
    grown(throttle)
    assert first < 50
    assert throttle.size == 500


def test_steps_shrink_until_they_take_as_long_as_they_may() -> None:
    throttle = Throttle(1_000)
    for _ in range(100):
        throttle.settled(throttle.size, throttle.size / 2_000, QUIET)
    assert 150 <= throttle.size <= 280, "0.1 s at 2,000 items a second"


def test_a_slow_commit_cuts_the_steps_and_doubles_the_rest() -> None:
    throttle = Throttle(500)
    grown(throttle)
    usual = throttle.settled(500, 0.05, QUIET)
    slow = throttle.settled(500, 0.05, 0.030)
    assert usual.reason == ""
    assert slow.reason == "commits are slow (30 ms)"
    assert slow.seconds >= 2 * usual.seconds
    assert throttle.size == 350


def test_it_comes_back_when_commits_are_quick_again() -> None:
    throttle = Throttle(500)
    grown(throttle)
    for _ in range(9):
        throttle.settled(throttle.size, 0.05, 0.1)
    assert throttle.size < 25
    grown(throttle, 100)
    assert throttle.size == 500
    assert throttle.settled(500, 0.05, QUIET).seconds == pytest.approx(0.05)


def test_small_commits_are_never_slow_however_much_slower_they_are() -> None:
    throttle = Throttle(500)
    grown(throttle)
    assert throttle.settled(500, 0.05, QUIET * 6).reason == ""


def test_a_disk_that_is_always_slow_is_no_reason_to_stop() -> None:
    throttle = Throttle(500)
    for _ in range(100):
        rest = throttle.settled(throttle.size, 0.06, 0.05)
    assert throttle.size == 500
    assert rest.reason == ""


def test_it_rests_as_long_as_it_works() -> None:
    throttle = Throttle(500)
    assert throttle.settled(32, 0.08, QUIET).seconds == pytest.approx(0.08)
    assert Throttle(500, None, Limits(duty=0.25)).settled(32, 0.08, QUIET).seconds == (
        pytest.approx(0.24)
    )


def test_a_rest_has_a_bound() -> None:
    throttle = Throttle(500)
    grown(throttle)
    for _ in range(10):
        rest = throttle.settled(10, 5.0, 1.0)
    assert rest.seconds == Limits().rest_s


def test_writers_that_wait_slow_it_down() -> None:
    throttle = Throttle(500)
    grown(throttle)
    rest = throttle.settled(500, 0.05, QUIET, writers_slower=2.25)
    assert rest.reason == "appends are 2.2 times slower than before"
    assert throttle.size == 350
    assert throttle.settled(350, 0.05, QUIET, writers_slower=1.5).reason == ""


def test_a_rate_is_kept_over_seconds() -> None:
    throttle = Throttle(500, rate=100)
    seconds = items = 0.0
    while items < 1_000:
        size = throttle.size
        assert size <= 100
        seconds += 0.01 + throttle.settled(size, 0.01, QUIET).seconds
        items += size
    assert items / seconds == pytest.approx(100, rel=0.02)


def test_a_rate_below_one_a_second_is_an_item_now_and_then() -> None:
    throttle = Throttle(500, rate=0.5)
    assert throttle.size == 1
    assert throttle.settled(1, 0.01, QUIET).seconds == pytest.approx(1.99)


def test_a_step_is_never_larger_than_the_most_of_its_kind() -> None:
    for most in (1, 2, 3, 10):
        throttle = Throttle(most)
        grown(throttle)
        assert throttle.size == most
        for _ in range(20):
            throttle.failed()
        assert throttle.size == min(most, 4)


# Lag


def test_a_projection_that_falls_behind_is_waited_for() -> None:
    lags = Lags(Limits(lag_s=10))
    assert lags.waits([Lag("folders", 100, 9.9)], 0) == ""
    assert lags.waits([Lag("folders", 110, 12.3), Lag("files", 90, 11.0)], 1) == (
        "projection folders is 12 s behind"
    )
    assert lags.waits([Lag("folders", 200, 2.0), Lag("files", 95, 11.0)], 2) == (
        "projection files is 11 s behind"
    )
    assert lags.waits([], 3) == ""


def test_a_projection_that_stands_still_is_not_waited_for_for_ever() -> None:
    lags = Lags()
    assert lags.waits([Lag("dead", 7, 1e6)], 0) != ""
    assert lags.waits([Lag("dead", 7, 1e6)], 14) != ""
    assert lags.waits([Lag("dead", 7, 1e6)], 16) == ""
    assert lags.waits([Lag("dead", 8, 1e6)], 17) != "", "it moves again"
