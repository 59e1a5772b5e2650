"""A run on batches of users of similar length: killed and continued, and the rates it logs."""

import json

import jax
import numpy as np
import pytest

from jaxrec.config import Config
from jaxrec.layout import SegmentLayout
from jaxrec.runtime import checkpoint
from jaxrec.session import Session
from jaxrec.training.hooks import Hook
from jaxrec.training.window import ExampleCost, StepCost

STEPS = 8


class Killed(BaseException):
    """Ends a run where it stands; nothing in the product catches it."""


class KillAt(Hook):
    """Kills the run before step `at`."""

    def __init__(self, at):
        self.at = at

    def before_step(self, step, state):
        if step == self.at:
            raise Killed


def make_config(folder):
    config = Config()
    config.data.dataset = "synthetic"
    config.data.cache_dir = str(folder / "data")
    config.data.min_item_events = config.data.holdout = 1
    synthetic = config.data.synthetic
    synthetic.users, synthetic.items, synthetic.events, synthetic.gap = 60, 40, 16, 6
    config.layout.segment_size, config.layout.tokens, config.layout.max_segments = 6, 2, 3
    config.model.width, config.model.heads, config.model.layers = 8, 2, 1
    config.model.token_input = "pooled"
    config.loss.kind, config.loss.negatives = "sampled_softmax", 8
    train = config.train
    train.batch_size, train.length_buckets, train.grad_accum_steps = 4, 8, 2
    train.steps, train.log_every, train.checkpoint_every, train.eval_every = STEPS, 1, 2, STEPS
    config.mesh.data = 1
    return config


def fit(folder, name, hooks=()):
    """Trains, or goes on; what metrics.jsonl says of every step."""
    session = Session(make_config(folder), folder / name)
    layout = session.layout

    def cost(slots, segments):
        return ExampleCost(layout.shortened(slots, segments).length, 1.0)

    session.fit(evaluate=lambda p: {"ndcg@10": 0.5}, step_cost=StepCost(cost, None), hooks=hooks)
    lines = (folder / name / "metrics.jsonl").read_text().splitlines()
    return session, [row for row in map(json.loads, lines) if "train/loss" in row]


@pytest.mark.slow
def test_killed_and_continued_on_batches_of_several_lengths(tmp_path):
    session, whole = fit(tmp_path, "whole")
    with pytest.raises(Killed):
        fit(tmp_path, "killed", [KillAt(5)])
    _, continued = fit(tmp_path, "killed")
    ours, theirs = (
        [{k: v for k, v in row.items() if k == "step" or k.startswith("train/")} for row in rows]
        for rows in (continued, whole)
    )
    assert ours == theirs
    like = jax.eval_shape(session.model.init, jax.random.key(0))
    a, b = (
        checkpoint.load_params(tmp_path / name / "checkpoints", like, "latest")
        for name in ("killed", "whole")
    )
    jax.tree.map(np.testing.assert_array_equal, a[1], b[1])

    batches, lengths = session.train_batches(0), set()
    for row in whole:
        batch = next(batches)
        layout = SegmentLayout.from_config(session.config.layout)
        layout = layout.shortened(batch.items.shape[1] - 1, batch.lengths.shape[1])
        lengths.add(layout.length)
        positions = len(batch.user) * layout.length
        assert row["positions_per_event"] == pytest.approx(positions / batch.lengths.sum())
        assert row["tokens_per_s"] == pytest.approx(layout.length * row["examples_per_s"])
    assert len(lengths) > 1
