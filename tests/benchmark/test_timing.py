"""Turns, their means and ratios, on a clock that is told what time it is."""

import pytest

from jaxrec.benchmark import timing


@pytest.fixture
def clock(monkeypatch):
    class Clock:
        now = 0.0

        def work(self, seconds):
            def run():
                self.now += seconds.pop(0) if isinstance(seconds, list) else seconds

            return run

    clock = Clock()
    monkeypatch.setattr(timing.time, "perf_counter", lambda: clock.now)
    return clock


def test_functions_take_turns_and_warm_up(clock):
    calls = []
    slow, fast = clock.work([9.0, 2.0, 4.0, 3.0]), clock.work(0.5)
    timings = timing.interleaved(
        {"slow": lambda: [calls.append("s"), slow()][:0], "fast": lambda: [fast()][:0]},
        repeats=3,
        warmup=1,
    )
    assert calls == ["s"] * 4
    assert timings["slow"] == {"median_s": 3.0, "min_s": 2.0, "max_s": 4.0, "runs": 3}
    assert timings["fast"] == {"median_s": 0.5, "min_s": 0.5, "max_s": 0.5, "runs": 3}


def test_a_short_call_fills_its_turn(clock):
    """One slow moment in a turn of four calls counts a quarter."""
    short = clock.work([1.0, 1.0, 1.0, 2.0])
    timings = timing.turns({"short": lambda: [short()][:0]}, repeats=1, warmup=0, min_turn_s=4.5)
    assert timings == {"short": [5.0 / 4]}


def test_a_turn_may_begin_with_calls_that_do_not_count(clock):
    cold = clock.work([9.0, 1.0, 1.0, 7.0, 3.0])
    timings = timing.turns(
        {"cold": lambda: [cold()][:0]}, repeats=2, warmup=0, min_turn_s=1.5, untimed=1
    )
    assert timings == {"cold": [1.0, 3.0]}


def test_ratios_are_taken_within_a_turn():
    """A turn in which everything is slow does not move them."""
    assert timing.times_faster([8.0, 80.0, 8.8], [1.0, 10.0, 1.0]) == (8.0, 8.0, 8.4)
    assert timing.times_faster([3.0], [2.0]) == (1.5, 1.5, 1.5)
