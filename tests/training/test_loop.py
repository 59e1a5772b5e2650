"""The loop: what it reports, when it stops, and that a killed run repeats itself."""

import json
import logging
import os
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrec.errors import CheckpointError, ConfigError, NonFiniteError, WorkdirError
from jaxrec.runtime import checkpoint
from jaxrec.training import loop
from tests.training import standin


class Killed(BaseException):
    """Ends a run where it stands; nothing in the product catches it."""


def killed_batches(at):
    def batches(start):
        for step, batch in enumerate(standin.batches(start), start):
            if step == at:
                raise Killed
            yield batch

    return batches


def trace(folder):
    """Everything that metrics.jsonl says but for how fast it was."""
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if k not in standin.RATES} for row in rows]


def assert_same_run(folder, other):
    assert trace(folder) == trace(other)  # floats survive JSON: this is bit for bit
    params = standin.init(jax.random.key(0))
    for which in ("best", "latest"):
        a, b = (checkpoint.load_params(f / "checkpoints", params, which) for f in (folder, other))
        assert a[0] == b[0]
        jax.tree.map(np.testing.assert_array_equal, a[1], b[1])


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The uninterrupted run."""
    folder = tmp_path_factory.mktemp("whole")
    return folder, standin.fit(folder)


def test_what_a_run_leaves(whole):
    folder, result = whole
    assert (result.step, result.stopped) == (24, "finished")
    rows = trace(folder)
    assert [r["step"] for r in rows if "train/loss" in r] == [5, 10, 15, 20, 24]
    assert [r["step"] for r in rows if "validation/ndcg@10" in r] == [8, 16, 24]
    losses = [r["train/loss"] for r in rows if "train/loss" in r]
    assert losses[-1] < 0.8 * losses[0]  # it learns
    assert set(rows[0]) == {
        "step",
        "train/loss",
        "train/grad_norm",
        "train/learning_rate",
        "train/hits",
    }
    values = {r["step"]: r["validation/ndcg@10"] for r in rows if "validation/ndcg@10" in r}
    assert result.best == max(values.values())
    assert values[result.best_step] == result.best
    kept = checkpoint.steps(folder / "checkpoints")
    assert kept[-1] == 24
    assert result.best_step in kept
    assert len(kept) <= 3
    names = {p.name for p in folder.iterdir()}
    assert {"config.json", "dataset.json", "environment.json", "metrics.jsonl"} <= names


def test_rates_are_reported(whole):
    row = json.loads((whole[0] / "metrics.jsonl").read_text().splitlines()[0])
    assert row["steps_per_s"] > 0
    assert row["examples_per_s"] == pytest.approx(8 * row["steps_per_s"])
    assert row["events_per_s"] == pytest.approx(8 * standin.SLOTS * row["steps_per_s"])
    assert 0 <= row["input_wait"] <= 1


def test_the_average_is_validated_and_kept(whole):
    folder, result = whole
    step, params = checkpoint.load_params(
        folder / "checkpoints", standin.init(jax.random.key(0)), "best"
    )
    assert step == result.best_step
    assert standin.evaluate(params)["ndcg@10"] == result.best


@pytest.mark.parametrize("at", [0, 8, 17])
def test_killed_between_steps_and_continued(whole, tmp_path, at):
    with pytest.raises(Killed):
        standin.fit(tmp_path, batches=killed_batches(at))
    assert standin.fit(tmp_path) == whole[1]
    assert_same_run(tmp_path, whole[0])


def test_killed_again_and_again(whole, tmp_path):
    for at in (2, 7, 9, 13, 14, 20, 22):
        with pytest.raises(Killed):
            standin.fit(tmp_path, batches=killed_batches(at))
    assert standin.fit(tmp_path) == whole[1]
    assert_same_run(tmp_path, whole[0])


def test_killed_in_a_validation(whole, tmp_path):
    calls = []

    def evaluate(params):
        calls.append(1)
        if len(calls) == 2:
            raise Killed
        return standin.evaluate(params)

    with pytest.raises(Killed):
        standin.fit(tmp_path, evaluate=evaluate)
    standin.fit(tmp_path)
    assert_same_run(tmp_path, whole[0])


@pytest.mark.parametrize("validation", [1, 3])
def test_sigterm_in_a_validation_saves_and_repeats_it(whole, tmp_path, validation):
    calls = []

    def evaluate(params):
        calls.append(1)
        if len(calls) == validation:
            os.kill(os.getpid(), signal.SIGTERM)
            pytest.fail("the validation is given up")
        return standin.evaluate(params)

    result = standin.fit(tmp_path, evaluate=evaluate)
    assert (result.step, result.stopped) == (8 * validation, "preempted")
    assert checkpoint.steps(tmp_path / "checkpoints")[-1] == 8 * validation
    assert standin.fit(tmp_path) == whole[1]
    assert_same_run(tmp_path, whole[0])


@pytest.mark.parametrize("at", [0, 11])
def test_sigterm_between_steps_saves(whole, tmp_path, at):
    def batches(start):
        for step, batch in enumerate(standin.batches(start), start):
            if step == at:
                os.kill(os.getpid(), signal.SIGTERM)
            yield batch

    result = standin.fit(tmp_path, batches=batches)
    assert (result.step, result.stopped) == (at + 1, "preempted")  # the step is finished
    assert checkpoint.steps(tmp_path / "checkpoints")[-1] == at + 1
    standin.fit(tmp_path)
    assert_same_run(tmp_path, whole[0])


def test_a_finished_run_is_not_trained_again(whole):
    folder, result = whole
    before = trace(folder)

    def batches(start):
        pytest.fail("no batch is needed")

    assert standin.fit(folder, batches=batches) == result
    assert trace(folder) == before


def test_a_longer_run_goes_on(tmp_path):
    constant = {"schedule": "constant", "eval_every": 100}
    standin.fit(tmp_path / "long", standin.make_config(steps=20, **constant))
    standin.fit(tmp_path / "more", standin.make_config(steps=10, **constant))
    standin.fit(tmp_path / "more", standin.make_config(steps=20, **constant))
    params = standin.init(jax.random.key(0))
    a, b = (
        checkpoint.load_params(tmp_path / name / "checkpoints", params, "latest")[1]
        for name in ("long", "more")
    )
    jax.tree.map(np.testing.assert_array_equal, a, b)


def test_early_stopping(tmp_path):
    values = iter([0.1, 0.3, 0.2, 0.3, 0.25])
    config = standin.make_config(steps=100, eval_every=2, checkpoint_every=50, patience=3)

    def evaluate(params):
        return {"ndcg@10": next(values)}

    result = standin.fit(tmp_path, config, evaluate=evaluate)
    assert result == loop.Result(10, "early", 0.3, 4)
    assert checkpoint.steps(tmp_path / "checkpoints") == [4, 10]
    again = standin.fit(tmp_path, config, evaluate=evaluate)  # stopped stays stopped
    assert again == result


def test_early_stopping_is_remembered_over_a_kill(tmp_path):
    steps = []

    def evaluate(params):
        return {"ndcg@10": [0.5, 0.4, 0.3, 0.2, 0.1][len(steps)]}

    def counting(params):
        value = evaluate(params)
        steps.append(1)
        return value

    config = standin.make_config(steps=100, eval_every=2, checkpoint_every=2, patience=3)
    with pytest.raises(Killed):
        standin.fit(tmp_path, config, evaluate=counting, batches=killed_batches(7))
    assert len(steps) == 3
    result = standin.fit(tmp_path, config, evaluate=counting)
    assert result == loop.Result(8, "early", 0.5, 2)


def test_without_validation_the_latest_is_the_best(tmp_path):
    result = standin.fit(tmp_path, standin.make_config(ema=0.0), evaluate=None)
    assert (result.best, result.best_step) == (None, None)
    step, _ = checkpoint.load_params(tmp_path / "checkpoints", standin.init(jax.random.key(0)))
    assert step == 24


@pytest.mark.parametrize("at", [0, 13])
def test_a_loss_that_is_not_finite_stops_with_step_and_culprit(tmp_path, at):
    def loss(params, batch, **kwargs):
        total, weight, metrics = standin.loss(params, batch, **kwargs)
        return jnp.where(batch.history[0] < 0, jnp.nan, total), weight, metrics

    def batches(start):
        for step, batch in enumerate(standin.batches(start), start):
            yield batch._replace(history=batch.history - 100) if step == at else batch

    with pytest.raises(NonFiniteError) as error:
        standin.fit(tmp_path, loss=loss, batches=batches)
    assert f"step {at + 1}:" in str(error.value)
    assert "the loss is nan" in str(error.value)
    saved = checkpoint.steps(tmp_path / "checkpoints")
    assert all(step <= at for step in saved)
    if at:  # and what was saved before is good
        assert saved
        params = checkpoint.load_params(
            tmp_path / "checkpoints", standin.init(jax.random.key(0)), "latest"
        )[1]
        assert all(np.isfinite(x).all() for x in jax.tree.leaves(params))


def test_a_corrupt_latest_checkpoint_does_not_change_the_result(whole, tmp_path, caplog):
    with pytest.raises(Killed):
        standin.fit(tmp_path, batches=killed_batches(20))
    latest = checkpoint.steps(tmp_path / "checkpoints")[-1]
    for path in (tmp_path / "checkpoints" / str(latest)).rglob("*"):
        if path.is_file() and path.parent.name == "d":
            path.write_bytes(path.read_bytes()[:-1] + b"\x55")
    with caplog.at_level(logging.WARNING):
        standin.fit(tmp_path)
    assert f"checkpoint {latest} in {tmp_path}" in caplog.text
    assert_same_run(tmp_path, whole[0])


def test_another_mesh_continues_where_one_stopped(whole, tmp_path):
    with pytest.raises(Killed):
        standin.fit(tmp_path, batches=killed_batches(13))
    config = standin.make_config()
    config.mesh.data, config.mesh.model = 2, 4
    standin.fit(tmp_path, config)
    for here, there in zip(trace(tmp_path), trace(whole[0]), strict=True):
        assert here == pytest.approx(there, rel=1e-4)


def test_refusals(whole, tmp_path):
    folder, _ = whole
    config = standin.make_config()
    config.model.width = 128
    with pytest.raises(WorkdirError, match=r"model.width=64 there, 128 here"):
        standin.fit(folder, config)
    with pytest.raises(WorkdirError, match="another dataset"):
        standin.fit(folder, digests={"data": "other"})
    config = standin.make_config(batch_size=9)
    config.mesh.data = 2
    with pytest.raises(ConfigError, match=r"train.batch_size=9"):
        standin.fit(tmp_path, config)
    with pytest.raises(ConfigError, match=r"train.metric='ndcg@10': validation has recall@5"):
        standin.fit(tmp_path / "metric", evaluate=lambda params: {"recall@5": 0.0})

    def wider(rng):
        params = standin.init(rng)
        return params | {"item": {"embedding": jnp.zeros((standin.ITEMS + 5, standin.WIDTH))}}

    with pytest.raises(CheckpointError, match=r"params/item/embedding is float32\[32, 8\]"):
        standin.fit(folder, init=wider)


def test_plain_lines(whole, tmp_path, capsys):
    standin.fit(tmp_path, standin.make_config(steps=10))
    text = capsys.readouterr().err.splitlines()
    assert text.pop(0) == "compiling the training step ..."
    assert text[0].startswith("first step (compilation) took ")
    assert text[1].startswith("step 5/10  loss ")
    assert "steps/s" in text[1]
    assert text[1].endswith(" left")
    assert text[2].startswith("step 8  validation ndcg@10 ")


def test_damaged_metrics_do_not_stop_a_run(tmp_path, capsys):
    standin.fit(tmp_path, standin.make_config(steps=10))
    path = tmp_path / "metrics.jsonl"
    first, *others = path.read_bytes().splitlines()
    flipped = first.replace(b"train", b"\xf4rain", 1)
    damaged = [flipped, b"[1]", b'{"step": "x"}', b"[" * 200_000]
    path.write_bytes(b"\n".join([*damaged, *others]) + b"\n")
    assert standin.fit(tmp_path, standin.make_config(steps=12)).step == 12
    said = "4 lines of metrics.jsonl cannot be read and were moved to metrics.jsonl.damaged"
    assert capsys.readouterr().err.count(said) == 1
    assert (tmp_path / "metrics.jsonl.damaged").read_bytes().splitlines() == damaged
    assert path.read_bytes().splitlines()[: len(others)] == others
