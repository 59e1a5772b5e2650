"""The clock of a training, with a time that is told."""

import pytest

from benchmarks.peers import watch


class Time:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


def start(qualities, budget=10.0, count=4, patience=8, costs=7.0):
    """(watch, time); every validation takes `costs` seconds and finds the next quality."""
    time, left = Time(), iter(qualities)

    def evaluate():
        time.now += costs
        return {"ndcg@10": next(left)}

    state = {"step": 0}
    made = watch.Watch(
        budget,
        count,
        evaluate=evaluate,
        snapshot=lambda: dict(state),
        now=time,
        say=lambda line: None,
        patience=patience,
    )
    return made, time, state


def train(made, time, state, steps=1000):
    for step in range(1, steps):
        time.now += 0.5
        state["step"] = step
        if made.tick(step):
            return step
    raise AssertionError("the budget did not end the training")


def test_validations_are_no_training_and_the_best_weights_are_kept():
    made, time, state = start([0.1, 0.4, 0.2, 0.3])
    assert train(made, time, state) == 20
    assert [p["seconds"] for p in made.curve] == [1.5, 4.0, 6.5, 10.0]
    assert made.best_point["ndcg@10"] == 0.4
    assert made.best == {"step": 8}
    facts = made.facts()
    assert facts["stopped"] == "budget"
    assert facts["train_seconds"] == 10.0


def test_no_gain_ends_a_training():
    made, time, state = start([0.4, 0.2, 0.4, 0.5], patience=2)
    train(made, time, state)
    assert made.stopped == "no gain"
    assert len(made.curve) == 3


def test_a_step_longer_than_the_pause_between_validations_validates_once():
    made, time, _ = start([0.1, 0.2])
    time.now += 7
    assert not made.tick(1)
    assert len(made.curve) == 1
    assert made.due == [10.0]


def test_a_clock_that_is_none():
    assert watch.seconds_of("cpu", 2)() >= 0
    with pytest.raises(ValueError, match="wall, cpu"):
        watch.seconds_of("sun", 1)
