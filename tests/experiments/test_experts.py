"""What tokens attend to: weights as recorded, shares, similarity, items."""

import dataclasses
from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest

from jaxrec.errors import ConfigError
from jaxrec.experiments import attended, experts
from jaxrec.experiments.runs import Lab, with_values
from jaxrec.layout import SegmentLayout
from jaxrec.nn import attention
from tests.experiments import tiny


@pytest.mark.parametrize("kind", ["pointwise", "softmax"])
def test_recorded_weights_are_those_that_mix_the_values(kind):
    layout = SegmentLayout.stream(3, 2, 2)
    rng = np.random.default_rng(0)
    shape = (2, layout.length, 2, 4)
    q, k = (jnp.asarray(rng.normal(size=shape), jnp.float32) for _ in range(2))
    valid = jnp.asarray(layout.valid(np.asarray([[3, 3, 2], [0, 3, 1]])))
    # with a basis vector as the value of each key the output is the weights
    basis = jnp.broadcast_to(jnp.eye(layout.length)[None, :, None], (*shape[:3], layout.length))
    plain = attention.attend(q, k, basis, layout, valid, kind=kind, normalizer=5.0, backend="dense")
    layers = []
    with attended.recording(lambda weights: layers.append(np.asarray(weights))) as name:
        out = attention.attend(q, k, basis, layout, valid, kind=kind, normalizer=5.0, backend=name)
    np.testing.assert_array_equal(out, plain)
    assert name not in attention.BACKENDS
    (weights,) = layers
    expected = np.abs(np.asarray(plain))[:, layout.token_positions].sum(2)
    np.testing.assert_allclose(weights, expected, rtol=1e-6, atol=1e-7)


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    return Lab(tiny.config(seeds=(0,)), tmp_path_factory.mktemp("runs"), lambda line: None)


def test_shares_of_a_run(lab):
    session = lab.session(lab.base)
    users = lab.users(session.prepared)
    tokens = attended.attended(session, users)
    count, size, per_segment = 2, 6, 2
    number = len(tokens.user)
    assert 0 < number <= len(users)
    assert tokens.attention.shape == (number, count, per_segment, size)
    assert tokens.values.shape == (number, count, per_segment, 1 * 2 * 4)
    # a token's attention goes to its items, to earlier tokens and to tokens of its own segment
    total = tokens.attention.sum(-1) + tokens.earlier
    assert (total < 1).all()
    assert (total > 0.2).all()
    assert (tokens.earlier[:, 0] == 0).all()
    assert (tokens.earlier[:, 1] > 0).all()
    # the items are those of the newest complete segments before the last event
    for user, items in zip(tokens.user, tokens.items, strict=True):
        history = session.history(int(user))
        complete = (len(history) - 1 - 1) // size
        start = (complete - count) * size
        np.testing.assert_array_equal(items.ravel(), history[start : complete * size])
    # a user alone gives the same as in a batch
    alone = attended.attended(session, tokens.user[1:2])
    np.testing.assert_allclose(alone.attention[0], tokens.attention[1], rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(alone.values[0], tokens.values[1], rtol=1e-4, atol=1e-6)


def test_users_with_fewer_segments_cannot_be_looked_at(lab):
    session = lab.session(lab.base)
    lengths = session.prepared.lengths
    short = np.flatnonzero(lengths < 2 * 6 + 2)
    some = short if len(short) else np.zeros(0, np.int64)
    with pytest.raises(ConfigError, match=r"layout\.max_segments=2"):
        attended.attended(session, some)


def test_similarity_tells_users_from_each_other():
    rng = np.random.default_rng(0)
    users, count, tokens, width = 40, 4, 2, 64
    lasting = rng.normal(size=(users, 1, tokens, width))
    passing = rng.normal(size=(users, count, tokens, width))
    common = 5.0 + rng.normal(size=(1, 1, tokens, width))
    cosines = experts.similarities(common + lasting + passing)
    assert set(cosines) == {(s, a) for s in (experts.SAME, experts.OTHER) for a in (1, 2, 3)} | {
        (experts.NEIGHBOUR, 0)
    }
    for apart in (1, 2, 3):
        # half of the variation is the user's own
        assert cosines[experts.SAME, apart].mean() == pytest.approx(0.5, abs=0.05)
        assert cosines[experts.OTHER, apart].mean() == pytest.approx(0.0, abs=0.05)
    assert cosines[experts.NEIGHBOUR, 0].mean() == pytest.approx(0.0, abs=0.05)
    alike = np.repeat(lasting[:, :, :1], 2, axis=2) + np.zeros((users, count, 1, 1))
    assert experts.similarities(alike)[experts.NEIGHBOUR, 0] == pytest.approx(1.0)


def test_buckets_of_distance_cover_a_segment_once():
    assert experts.distances(1) == [(1, 1)]
    assert experts.distances(50) == [(1, 1), (2, 2), (3, 4), (5, 8), (9, 16), (17, 32), (33, 50)]


def test_item_matrix_adds_up_attention_by_item(monkeypatch):
    monkeypatch.setattr(experts, "COMMON", 2)
    items = np.asarray([[[7, 7, 3], [3, 9, 7]]])  # one user, two segments; 7 and 3 are common
    attention_weights = np.arange(12.0).reshape(1, 2, 2, 3)
    matrix, common = experts.item_matrix(items, attention_weights)
    assert common.tolist() == [3, 7]
    by_hand = np.asarray([[2 + 6, 0 + 1 + 8], [5 + 9, 3 + 4 + 11]], float)
    np.testing.assert_allclose(matrix, by_hand / by_hand.sum(1, keepdims=True))


def test_names_of_items():
    vocabulary = SimpleNamespace(ids=[101, 102])
    named = SimpleNamespace(texts={"kind": ["", "", "milk"]}, vocabulary=vocabulary)
    assert [experts.item_name(named, i) for i in (1, 2)] == ["101", "milk"]
    bare = SimpleNamespace(texts=None, vocabulary=vocabulary)
    assert experts.item_name(bare, 2) == "102"


def test_every_kind_of_row(lab):
    experiment = experts.experts(lab)
    rows = [cell.make() for cell in experiment.cells]
    assert [row["name"] for row in rows] == [cell.name for cell in experiment.cells]
    parts = {
        part: [r for r in rows if r["part"] == part]
        for part in dict.fromkeys(row["part"] for row in rows)
    }
    assert list(parts) == ["similarity", "attention", "factors"]
    for row in parts["similarity"]:
        assert -1 <= row["cosine_low"] <= row["cosine"] <= row["cosine_high"] <= 1
    for token in ("token 1", "token 2"):
        of_token = [r for r in parts["attention"] if r["series"] == token and "distance" in r]
        # buckets 1, 2, 3-4, 5-6 of a segment of six events: uniform on average
        assert [r["distance"] for r in of_token] == [1, 2, 3.5, 5.5]
        weighted = sum(r["times_uniform"] * n for r, n in zip(of_token, (1, 1, 2, 2), strict=True))
        assert weighted == pytest.approx(6)
    loadings = [r["loading"] for r in parts["factors"] if r.get("component") == "component 1"]
    assert sum(loadings) == pytest.approx(1)
    summary = parts["factors"][-1]
    assert 0.5 <= summary["concentration"] <= 1
    assert 0.5 <= summary["concentration_shuffled"] <= 1


def test_states_of_outputs_are_looked_at_as_keys_and_values(lab):
    """The run with model.state=kv is the one whose attention is recorded."""
    config = dataclasses.replace(
        lab.config, model=with_values(lab.base, model__state="embedding").model
    )
    other = Lab(config, lab.folder, lambda line: None, train=False)
    assert experts.experts(other).cells[0].make() == experts.experts(lab).cells[0].make()
