"""The experiment `steps`: trainings of other lengths, compared with one another."""

import pytest

from jaxrec.experiments import settings, statistics, training_length
from jaxrec.experiments.runs import Lab, with_values
from jaxrec.experiments.training_length import reading, with_steps
from tests.experiments import tiny

MODES = ("recent", "compressed", "full")


def test_rows_are_trainings_of_their_own(tmp_path):
    said = []
    lab = Lab(tiny.config(seeds=(0,)), tmp_path, said.append)
    experiment = training_length.steps(lab)
    rows = {cell.name: cell.make() for cell in experiment.cells}
    assert list(rows) == [f"{mode}, {steps} steps" for mode in MODES for steps in (2, 4)]
    trained = [line for line in said if line.startswith("training ")]
    assert len(trained) == 6
    assert sum(line.endswith(" 2 steps") for line in trained) == 3
    for name, row in rows.items():
        assert ("ndcg@10_of_fewer" in row) == name.endswith(" 4 steps")
        assert ("ndcg@10_closed" in row) == name.startswith("compressed")
    # paired with the shorter training of the same mode
    few, many = (with_steps(lab.base, factor) for factor in lab.config.experiments.steps)
    without = {"model__repeat_half_lives": ()}
    table = [
        statistics.values([lab.ranks(with_values(c, seed=0, **without), "compressed")], "mrr", None)
        for c in (few, many)
    ]
    ratio = table[1].mean() / table[0].mean()
    assert rows["compressed, 4 steps"]["mrr_of_fewer"] == pytest.approx(ratio)
    # the unchanged number of steps is the run of the other experiments
    assert lab.place(many) == lab.place(lab.base)
    assert experiment.reading(list(rows.values())).count("times as good") == 3


def row(mode, steps, low, mean, high, closed=None):
    made = {"series": mode, "steps": steps}
    columns = {"_low": low, "": mean, "_high": high}
    made |= {f"ndcg@10_of_fewer{end}": value for end, value in columns.items()}
    return made | (closed or {})


def test_reading_tells_a_plateau_from_growth_and_noise():
    closed = {"ndcg@10_closed": 0.9, "ndcg@10_closed_low": 0.8, "ndcg@10_closed_high": 1.0}
    text = reading(
        [
            row("recent", 500, 0.5, 0.9, 1.2),
            row("recent", 1000, 0.99, 1.0, 1.009),
            row("compressed", 1000, 1.02, 1.03, 1.04, closed),
            row("full", 1000, 0.98, 1.02, 1.06),
        ]
    )
    assert "`recent` after 1,000 steps is 1.000 [0.990, 1.009] times as good" in text
    assert "before: a plateau. `compressed`" in text
    gain = "1.030 [1.020, 1.040] times as good by NDCG@10 as with the fewer steps before"
    assert f"{gain}: still gaining." in text
    assert "1.020 [0.980, 1.060]" in text
    assert "no more than the noise" in text
    assert text.endswith("After most steps compressed closes 90.0 % [80.0, 100.0] of the gap.")
    alone = [{"series": mode, "steps": 5} for mode in MODES]
    assert reading(alone).startswith("One number of steps alone tells nothing")


def test_numbers_of_steps_are_factors(tmp_path):
    config = tiny.config()
    config.experiments.steps = (0.5, 0.25)
    with pytest.raises(settings.ConfigError, match=r"experiments\.steps=\(0\.5, 0\.25\)"):
        settings.validate(config)
