"""`jaxrec train` on a data set that later files were appended to."""

import json

import jax
import numpy as np
import polars as pl
import pytest

from jaxrec.runtime import checkpoint, leaves
from tests.integration import tiny

MODEL = [*tiny.MODEL, "--config.loss.kind=sampled_softmax", "--config.data.min_item_events=1"]


def day(folder, number, users, items, events=400):
    rng = np.random.default_rng(number)
    time = 1_700_000_000 + 86_400 * number + np.sort(rng.integers(0, 86_400, events))
    pl.DataFrame(
        {
            "user_id": rng.integers(0, users, events),
            "item_id": 100 + rng.integers(0, items, events),
            "timestamp": time,
        }
    ).write_parquet(folder / f"day{number}.parquet")


def train(folder, *more, data="day0.parquet", steps=8):
    """(exit status, standard output, standard error) of the command, in this process."""
    argv = [
        f"--config=configs/table.py:{folder / data}",
        "--config.layout.mode=compressed",  # of so short histories the data would choose full
        f"--workdir={folder / 'run'}",
        *MODEL,
        *tiny.RUN[1:],
        f"--config.train.steps={steps}",
        "--config.data.workers=0",
        *more,
    ]
    return tiny.call("train", *argv)


def stored(folder, step):
    """Every leaf of a checkpoint by name, and its meta."""
    where = folder / "run" / "checkpoints"
    record = json.loads((where / str(step) / "record.json").read_text())["record"]
    like: dict = {"params": {}, "opt_state": {}}
    for name, (shape, dtype, _) in record["leaves"].items():
        tree, _, leaf = name.partition("/")
        like[tree][leaf] = jax.ShapeDtypeStruct(shape, dtype)
    flat = checkpoint.restore(where, step, like).trees
    return leaves.flatten(flat), record["meta"]


def lines(folder):
    rows = (folder / "run" / "metrics.jsonl").read_text().splitlines()
    return [json.loads(row) for row in rows]


@pytest.mark.parametrize("update", ["adamw", pytest.param("adagrad", marks=pytest.mark.slow)])
def test_a_run_goes_on_with_appended_files(update, tmp_path):
    day(tmp_path, 0, users=20, items=30)
    day(tmp_path, 1, users=30, items=45)
    table = f"--config.train.table_update={update}"
    brief = "--config.eval.mode=popularity"  # the last run evaluates the model, grown
    status, _, err = train(tmp_path, table, brief)
    assert status == 0, err
    before, _ = stored(tmp_path, 8)
    old = len(before["params/item/embedding"])
    assert old == 31
    append = [table, f"--config.data.append=('{tmp_path / 'day1.parquet'}',)"]
    on = "--config.train.continue_on_new_data=True"
    # without a word it is another data set
    status, _, err = train(tmp_path, *append, brief)
    assert status == 2
    assert "train.continue_on_new_data=True" in err
    # the moment of growth: no step is asked for beyond those that are done
    status, _, err = train(tmp_path, *append, on, brief)
    assert status == 0, err
    assert "data was appended to: 15 new rows" in err
    after, meta = stored(tmp_path, 8)
    for name, values in before.items():
        if values.shape == after[name].shape:
            np.testing.assert_array_equal(after[name], values, err_msg=name)
            continue
        assert "item/embedding" in name
        np.testing.assert_array_equal(after[name][:old], values, err_msg=name)
        fresh = np.asarray(after[name][old:])
        assert fresh.any() == name.startswith("params")
    assert len(after["params/item/embedding"]) == 46
    assert meta["validation"]["best"] is None
    # training continues, trains the new rows, and needs no flag any more
    status, _, err = train(tmp_path, *append, steps=16)
    assert status == 0, err
    assert "continuing from step 8" in err
    found = lines(tmp_path)
    assert [row["step"] for row in found if "train/loss" in row] == list(range(1, 17))
    losses = [row["train/loss"] for row in found if "train/loss" in row]
    assert losses[8] < 1.5 * losses[0]
    trained, _ = stored(tmp_path, 16)
    moved = np.asarray(
        trained["params/item/embedding"][old:] != after["params/item/embedding"][old:]
    )
    assert moved.any()
    # serving knows the new items, and can recommend them
    from jaxrec.serving.service import Recommender

    rec = Recommender.load(tmp_path / "run", which="latest")
    assert rec.catalog.num_items == 45
    with rec.create_store(tmp_path / "store") as store:
        rec.append(store, [1, 1, 1], [100, 144, 120], [1_700_100_000 + n for n in range(3)])
        items, scores = rec.recommend(store, [1], k=45)
    assert set(items[0].tolist()) == set(range(100, 145))
    assert np.isfinite(scores).all()
