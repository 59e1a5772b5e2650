"""Artifacts that need no jaxrec: called back with another batch, in a process without it."""

import json
import subprocess
import sys

import jax
import numpy as np
import pytest

from jaxrec.model import states
from jaxrec.serving import export
from tests.serving import standin
from tests.serving.standin import ORIGIN, N

CALLER = """
import json, sys
import jax, numpy as np

folder, inputs, outputs = sys.argv[1:]
load = lambda name: jax.export.deserialize(open(f"{folder}/{name}.bin", "rb").read())
params = dict(np.load(f"{folder}/params.npz"))
given = np.load(inputs)
state = load("compress").call(params, given["items"], given["times"], given["counts"])
more = given["more"].shape[0]
state = load("extend").call(params, state, given["more"], given["later"], given["added"])
scores = load("score").call(params, state, given["now"])
best, ids = load("recommend").call(params, state, given["now"])
assert "jaxrec" not in sys.modules
np.savez(outputs, scores=scores, best=best, ids=ids)
"""


@pytest.fixture(scope="module")
def artifact(tmp_path_factory):
    rec = standin.make(request_time=True)
    return export.save(rec, tmp_path_factory.mktemp("artifact"), events=12, k=5)


def test_they_are_for_every_platform(artifact):
    signature = json.loads((artifact / "signature.json").read_text())
    for name in ("compress", "extend", "score", "recommend"):
        exported = jax.export.deserialize((artifact / f"{name}.bin").read_bytes())
        assert set(exported.platforms) == {"cpu", "cuda", "tpu"}
        assert len(signature["functions"][name]["inputs"]) == len(exported.in_avals)
        assert any("b" in str(aval.shape) for aval in exported.in_avals)
    assert signature["state"]["tokens.k"] == [
        [1, -1, 6, 2, 4],
        "float32",
    ]  # all layers but the first
    assert set(signature["params"]) == set(np.load(artifact / "params.npz").files)


@pytest.mark.parametrize("batch", [3, 5])
def test_called_back_they_give_the_same_scores(artifact, tmp_path, batch):
    rec = standin.make(request_time=True)
    rng = np.random.default_rng(batch)
    width, count = 12, rng.integers(1, 13, batch).astype(np.int32)
    items = rng.integers(1, standin.ITEMS + 1, (batch, 2 * width)).astype(np.int32)
    times = np.sort(rng.integers(0, 10**6, (batch, 2 * width))).astype(np.int32)
    added = rng.integers(0, 13, batch).astype(np.int32)
    added[0] = N  # a segment is completed
    now = times[:, -1] + 1000
    given = {
        "items": items[:, :width],
        "times": times[:, :width],
        "counts": count,
        "more": items[:, width:],
        "later": times[:, width:],
        "added": added,
        "now": now,
    }
    np.savez(tmp_path / "given.npz", **given)
    arguments = [artifact, tmp_path / "given.npz", tmp_path / "found.npz"]
    done = subprocess.run(
        [sys.executable, "-c", CALLER, *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    outputs = np.load(tmp_path / "found.npz")
    for row in range(batch):
        line = np.concatenate([items[row, : count[row]], items[row, width : width + added[row]]])
        clock = np.concatenate([times[row, : count[row]], times[row, width : width + added[row]]])
        raw = rec.catalog.raw(line)
        scores = standin.expected(rec, raw, clock.astype(np.int64) + ORIGIN, int(now[row]) + ORIGIN)
        np.testing.assert_allclose(outputs["scores"][row, 1:], scores, atol=1e-5 * np.ptp(scores))
        order = np.argsort(-scores)[:5]
        assert outputs["ids"][row].tolist() == (order + 1).tolist()
        np.testing.assert_allclose(outputs["best"][row], scores[order], atol=1e-5 * np.ptp(scores))


def test_sizes_that_cannot_be(tmp_path):
    for wrong in ({"events": 0}, {"k": 0}):
        with pytest.raises(ValueError, match="positive numbers are needed"):
            export.save(standin.make(), tmp_path, **wrong)
    assert not list(tmp_path.iterdir())


def test_flat_states_are_states():
    state = states.empty(standin.make().model, 2)
    again = export.nested_state(export.flat_state(state))
    jax.tree.map(np.testing.assert_array_equal, state, again)
