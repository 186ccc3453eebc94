"""How much slower appends are: compared with what they are without operations."""

from __future__ import annotations

from operations.throttle import Writers


def told(writers: Writers, figure: float, begin: float, seconds: float) -> float:
    """Tells a figure every five seconds; the time after it."""
    now = begin
    while now < begin + seconds:
        writers.seen(figure, now)
        now += 5
    return now


def test_appends_that_are_quick_are_not_slow_however_quick_they_were() -> None:
    writers = Writers()
    now = told(writers, 0.002, 0, 30)
    told(writers, 0.008, now, 30)
    assert writers.slower == 1.0


def test_slower_than_the_best_that_was_seen_is_slow() -> None:
    writers = Writers()
    now = told(writers, 0.060, 0, 10)  # began while they were slow
    now = told(writers, 0.010, now, 10)
    assert writers.slower == 1.0
    told(writers, 0.040, now, 10)
    assert writers.slower == 4.0


def test_nobody_who_appends_at_first_is_no_measure() -> None:
    writers = Writers()
    now = told(writers, 0.0, 0, 20)
    assert writers.slower == 1.0
    now = told(writers, 0.010, now, 10)
    told(writers, 0.030, now, 10)
    assert writers.slower == 3.0


def test_what_stays_slow_without_operations_is_the_time_of_the_day() -> None:
    writers = Writers()
    now = told(writers, 0.010, 0, 10)
    quiet = 0
    for _ in range(40):
        writers.seen(0.030, now)
        quiet += writers.quiet
        now += 5
    assert quiet == 5  # 25 seconds, once
    assert (writers.slower, writers.quiet) == (1.0, False)
    told(writers, 0.090, now, 10)
    assert writers.slower == 3.0


def test_what_operations_are_to_blame_for_stays_slow() -> None:
    writers = Writers()
    now = told(writers, 0.010, 0, 10)
    for _ in range(40):
        writers.seen(0.010 if writers.quiet else 0.030, now)
        now += 5
    assert (writers.slower, writers.quiet) == (3.0, False)


def test_after_a_minute_without_operations_it_begins_anew() -> None:
    writers = Writers()
    now = told(writers, 0.010, 0, 10)
    told(writers, 0.050, now + 61, 10)
    assert writers.slower == 1.0
