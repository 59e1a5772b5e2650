"""The steps of a recipe that fit into a time, told by a trial with a clock of its own."""

import argparse
import json

import pytest

from benchmarks.peers import ours, recipes, watch
from jaxrec.config import Config

STEP, COMPILED = 0.5, 20.0  # seconds


@pytest.fixture
def trials(monkeypatch):
    """How often a trial ran; the clock moves as its training does."""
    time, count = [0.0], []

    def train(config, place, evaluate):
        count.append(config.train.steps)
        place.mkdir(parents=True)
        validate = evaluate(None)
        time[0] += COMPILED
        for _ in range(config.train.steps // config.train.eval_every):
            time[0] += STEP * config.train.eval_every
            assert config.train.metric in validate(None)

    monkeypatch.setattr(ours, "train", train)
    monkeypatch.setattr(recipes, "load", lambda recipe: Config())
    monkeypatch.setattr(watch, "seconds_of", lambda clock, threads: lambda: time[0])
    return count


def given(tmp_path):
    return argparse.Namespace(
        recipe="configs/x.py", seed=3, runs=tmp_path, set=[], clock="wall", threads=1
    )


def test_steps_fill_what_compilation_leaves(trials, tmp_path):
    config = Config()
    ours.fit_into(config, 80.0, tmp_path / "row", given(tmp_path))
    assert config.train.steps == (80 - COMPILED) / STEP
    assert config.train.eval_every * ours.VALIDATIONS >= config.train.steps
    assert config.train.warmup == config.train.steps // 10
    assert config.train.checkpoint_every == config.train.steps


def test_a_trial_is_made_once_for_all_seeds(trials, tmp_path):
    for seconds in (80.0, 140.0):
        config = Config()
        ours.fit_into(config, seconds, tmp_path / "row", given(tmp_path))
    assert config.train.steps == 240
    assert len(trials) == 1
    assert json.loads((tmp_path / "row" / "trial.json").read_text())["step"] == STEP
    assert not (tmp_path / "row" / "trial").exists()


def test_a_time_that_compilation_takes_up_is_refused(trials, tmp_path):
    with pytest.raises(SystemExit, match="--seconds=21"):
        ours.fit_into(Config(), 21.0, tmp_path / "row", given(tmp_path))


def test_settings_of_the_command_line_reach_the_recipe(tmp_path):
    args = given(tmp_path)
    args.set = ["model.width=32", "train.learning_rate=0.01"]
    config = Config()
    ours.prepare(config, args)
    assert (config.seed, config.model.width, config.train.learning_rate) == (3, 32, 0.01)
    assert config.data.cache_dir == str(tmp_path / "data")
