"""Rows of `ablations`: what they change, what they refuse, and their pairing with the base."""

import numpy as np
import pytest

from jaxrec.errors import ConfigError
from jaxrec.evaluation.ranks import Ranks
from jaxrec.experiments import ablations, settings
from jaxrec.experiments.runs import Lab
from tests.experiments import tiny

RECIPES = ["configs/ablations_quick.py", "configs/ablations_movielens.py:latest-small"]


def lab(tmp_path, *rows):
    config = tiny.config()
    config.experiments.ablations = rows
    return Lab(config, tmp_path, train=False)


def test_a_row_changes_what_it_says_on_top_of_the_base(tmp_path):
    rows = ablations.parse(["base: layout.tokens=1; train.ema=0.5", "two: layout.tokens=2"])
    start = lab(tmp_path).base
    base = ablations.changed(start, rows[0])
    row = ablations.changed(base, rows[1])
    assert (base.layout.tokens, base.train.ema) == (1, 0.5)
    assert (row.layout.tokens, row.train.ema) == (2, 0.5)
    assert start.train.ema == 0  # a copy
    assert ablations._differences(row, base) == "layout.tokens=2"


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ((), r"base row and one more"),
        (("a:", "a: layout.tokens=2"), r"two rows have one name"),
        (("a:", "b layout.tokens=2"), r"'b layout.tokens=2' is no row"),
        (("a:", "b: layout.tokens"), r"is no row"),
        (("a:", "b: layout.token=2"), r"row 'b': unknown config key layout.token"),
        (("a:", "b: layout.tokens=0"), r"row 'b': layout.tokens=0"),
    ],
)
def test_rows_that_cannot_work_are_named(tmp_path, rows, message):
    with pytest.raises(ConfigError, match=message):
        ablations.ablations(lab(tmp_path, *rows))


@pytest.mark.parametrize("file", RECIPES)
def test_recipes_are_valid(file, tmp_path):
    experiment = ablations.ablations(Lab(settings.load(file), tmp_path, train=False))
    assert len(experiment.cells) > 10


def test_rows_are_paired_with_the_base(tmp_path, monkeypatch):
    """The base is 1 without an interval; a row half as good is 0.5 for every draw."""
    made = lab(tmp_path, "base:", "dropped: train.item_dropout=0.5", "full: layout.mode=full")
    rng = np.random.default_rng(0)
    ranks = {seed: rng.integers(0, 12, 40) for seed in made.seeds}
    modes = []

    def stand_in(config, row):
        modes.append(row)
        rank = ranks[config.seed].copy()
        user = np.repeat(np.arange(20), 2)
        if config.train.item_dropout:
            rank[user % 2 == 1] = 50
        return Ranks(user, np.arange(40), np.ones(40, np.int64), rank, None)

    monkeypatch.setattr(made, "ranks", stand_in)
    base, dropped, full = (cell.make() for cell in ablations.ablations(made).cells)
    for row in (base, full):
        assert row["recall_of_base"] == row["recall_of_base_low"] == row["recall_of_base_high"] == 1
    assert base["changed"] == ""
    assert dropped["changed"] == "train.item_dropout=0.5"
    assert dropped["recall_of_base_low"] < dropped["recall_of_base"] < 1
    assert dropped["recall@10"] == pytest.approx(base["recall@10"] * dropped["recall_of_base"])
    assert {"compressed", "full"} == set(modes)
    assert full["flops_of_full"] == 1
    assert base["flops_of_full"] < 1
