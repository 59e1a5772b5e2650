"""When a training counts as done."""

import json

import pytest

from jaxrec.config import Config
from jaxrec.experiments import plateau


def run(folder, values, last=400):
    """A folder whose validations have these values, in `last` steps."""
    folder.mkdir(exist_ok=True)
    every = last / len(values)
    lines = [
        {"step": round((n + 1) * every), "validation/ndcg@10": v} for n, v in enumerate(values)
    ]
    lines.append({"step": last, "train/loss": 1.0})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    config = Config()
    config.train.steps, config.train.metric = 400, "ndcg@10"
    return folder, config


@pytest.mark.parametrize(
    ("values", "unfinished"),
    [
        ([0.1, 0.2, 0.3, 0.4], True),
        ([0.1, 0.2, 0.3, 0.31], False),
        ([0.1, 0.3, 0.2, 0.2], False),  # it went down again
        ([0.1, 0.2, 0.3, 0.3151], True),
        ([0.3, 0.3, 0.3], True),  # too few to tell
        ([0.0, 0.0, 0.0, 0.0], False),
        ([0.0, 0.0, 0.0, 0.1], True),
    ],
)
def test_a_run_is_unfinished_while_its_metric_grows(tmp_path, values, unfinished):
    assert plateau.unfinished(*run(tmp_path / "run", values)) == unfinished


def test_early_stopping_is_a_plateau(tmp_path):
    folder, config = run(tmp_path / "run", [0.1, 0.2], last=200)
    assert not plateau.unfinished(folder, config)


def test_a_run_without_validations_is_unfinished(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 400, "train/loss": 1.0}\n')
    config = Config()
    config.train.steps = 400
    assert plateau.unfinished(tmp_path, config)
