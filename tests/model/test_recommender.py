"""The whole model: its loss against its own predictions, for every kind of score."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrec import ranking
from jaxrec.config import LossConfig, MeshConfig, ModelConfig
from jaxrec.layout import SegmentLayout
from jaxrec.model import recommender
from jaxrec.model.parameters import has_item_rows
from jaxrec.objective import sampling
from jaxrec.runtime import mesh as mesh_lib
from jaxrec.types import Batch
from tests.model import trained

ITEMS = 20
LAYOUT = SegmentLayout.stream(3, 2, 2, recent_min=1)


def make(
    similarity="dot", half_lives=(), token_weight=0.0, kind="sampled_softmax", item_bias=False
):
    config = ModelConfig(
        width=8,
        heads=2,
        layers=1,
        dropout=0.0,
        embed_dropout=0.0,
        repeat_half_lives=half_lives,
        repeat_half_times=(1e5,) if half_lives else (),
        item_bias=item_bias,
    )
    loss = LossConfig(
        kind=kind, similarity=similarity, negatives=6, sampling="uniform", token_weight=token_weight
    )
    model = recommender.build(config, loss, LAYOUT, ITEMS)
    return model, trained.moved(model.init(jax.random.key(0)))


def make_batch():
    rng = np.random.default_rng(0)
    slots = LAYOUT.num_items + 1
    lengths = np.asarray([[3, 3, 2], [0, 3, 3], [0, 0, 1]], np.int32)
    items = rng.integers(1, 7, (3, slots)).astype(np.int32)  # few items: many repeats
    weights = rng.integers(0, 2, (3, slots)).astype(np.float32)
    for row, (first, second, recent) in enumerate(lengths):
        present = np.r_[[first > 0] * 3, [second > 0] * 3, np.arange(4) <= recent]
        items[row, ~present] = 0
        weights[row, ~present] = 0
    # no predictor, or two: `predict` asks the last token, the loss the last item too
    weights[:, LAYOUT.item_segment_starts[:-1]] = 0
    times = np.sort(rng.integers(0, 10**6, (3, slots))).astype(np.int32)
    user = np.arange(3, dtype=np.int32)
    return Batch(items, times, lengths, weights, user, user)


@pytest.mark.parametrize("similarity", ["dot", "cosine"])
@pytest.mark.parametrize("half_lives", [(), (2.0, 0.0)])
@pytest.mark.parametrize("item_bias", [False, True])
def test_loss_is_the_cross_entropy_of_the_predicted_scores(similarity, half_lives, item_bias):
    """Training and ranking use one score: sampled softmax recomputed from `predict`."""
    model, params = make(similarity, half_lives, item_bias=item_bias)
    if item_bias:  # two items of one direction and other biases: false negatives of each other
        table = params["item"]["embedding"]
        params["item"]["embedding"] = table.at[2].set(table[3])
    batch, rng = make_batch(), jax.random.key(5)
    total, weight, _ = jax.jit(model.loss)(params, batch, rng=rng)
    rows, slots = np.nonzero(batch.weights)
    queries = jax.tree.map(lambda a: a[rows, slots], jax.jit(model.predict)(params, batch))
    history = model.history_items_before(batch, rows, slots)
    scores = np.asarray(ranking.scores(queries, model.item_index(params), history))
    scale = 1.0 if similarity == "dot" else float(np.exp(params["logit_scale"]))
    negatives, _ = sampling.sample_negatives(jax.random.split(rng)[1], ITEMS, 6)
    table = np.asarray(model.item_vectors(params).vectors)  # a bias tells no false negatives
    expected = 0.0
    for place, (row, slot) in enumerate(zip(rows, slots, strict=True)):
        target = batch.items[row, slot]
        logits = [scale * scores[place, target]]
        for item in np.asarray(negatives):
            near = (
                table[item] @ table[target] / np.prod(np.linalg.norm(table[[item, target]], axis=1))
            )
            if item != target and near <= 0.99:
                logits.append(scale * scores[place, item] - np.log(6 / ITEMS))
        expected += np.logaddexp.reduce(logits) - logits[0]
    np.testing.assert_allclose(total, expected, rtol=1e-5)
    assert float(weight) == len(rows)


def test_gates_start_at_zero_and_learn():
    config = ModelConfig(width=8, heads=2, layers=1, repeat_half_lives=(0.0,))
    model = recommender.build(config, LossConfig("sampled_softmax", negatives=6), LAYOUT, ITEMS)
    params, batch = model.init(jax.random.key(0)), make_batch()
    counts = jnp.ones(ITEMS + 1)

    @jax.jit
    @jax.grad
    def slope(params):
        return model.loss(params, batch, rng=jax.random.key(0), item_counts=counts)[0]

    gradient = slope(params)
    assert float(jnp.abs(params["repeat_gates"]["kernel"]).max()) == 0
    assert float(jnp.abs(gradient["repeat_gates"]["kernel"]).max()) > 0


def test_token_weight_adds_the_last_tokens_prediction():
    batch, rng = make_batch(), jax.random.key(5)
    batch = batch._replace(weights=np.where(batch.items > 0, 1.0, 0.0).astype(np.float32))
    models = [make(token_weight=weight)[0] for weight in (0.0, 0.5)]
    weights = [jax.jit(model.loss)(make()[1], batch, rng=rng)[1] for model in models]
    # rows 0 and 1 have two and one complete segments with an event behind them
    assert float(weights[1] - weights[0]) == pytest.approx(0.5 * 3)


def test_sampling_needs_a_key():
    model, params = make()
    with pytest.raises(ValueError, match="pass rng"):
        model.loss(params, make_batch())


@pytest.mark.parametrize("item_bias", [False, True])
def test_full_softmax_over_a_split_catalog_is_that_of_the_whole(item_bias):
    """Loss and gradient, with the table's rows over `mesh.model` and the batch over all devices."""
    model, params = make(kind="softmax", item_bias=item_bias)
    params["item"] = {k: v[:20] for k, v in params["item"].items()}  # 20 rows: 4 divides them
    model = recommender.build(model.config, model.loss_config, LAYOUT, 19)
    batch = jax.tree.map(lambda x: np.concatenate([x, x, x[:2]]), make_batch())  # 8 rows

    def mean(params, batch):
        total, weight, _ = model.loss(params, batch)
        return total / weight

    expected, gradient = jax.jit(jax.value_and_grad(mean))(params, batch)
    mesh = mesh_lib.make_mesh(MeshConfig(data=2, model=4))
    split = jax.device_put(params, mesh_lib.shardings(mesh, params, has_item_rows))
    with jax.set_mesh(mesh):
        step = jax.jit(jax.value_and_grad(mean))
        placed = mesh_lib.put_batch(mesh, batch)
        found, ours = step(split, placed)
        text = step.lower(split, placed).compile().as_text()
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(gradient), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-6)
    assert ours["item"]["embedding"].sharding.spec[0] == "model"
    assert f"f32[{len(batch.user) * len(LAYOUT.predictors)},20]" not in text  # no whole logits


def changed(model, **values):
    """The model with other values in its loss configuration."""
    loss = dataclasses.replace(model.loss_config, **values)
    return recommender.build(model.config, loss, model.layout, model.num_items)


@pytest.mark.parametrize("half_lives", [(), (2.0, 0.0)])
def test_groups_of_negatives_are_losses_of_parts(half_lives):
    """Each group is a batch of its own, with its own key."""
    model, params = make(half_lives=half_lives)
    batch, rng = make_batch(), jax.random.key(5)
    grouped = changed(model, negative_groups=3)
    total, weight, _ = jax.jit(grouped.loss)(params, batch, rng=rng)
    expected, alone = 0.0, jax.jit(model.loss)
    for row, key in enumerate(jax.random.split(jax.random.split(rng)[1], 3)):
        part = jax.tree.map(lambda x, row=row: x[row : row + 1], batch)
        drawn = sampling.draw_negatives(key, ITEMS, 6)
        expected += alone(params, part, rng=rng, negatives=drawn)[0]
    np.testing.assert_allclose(total, expected, rtol=1e-5)
    assert float(weight) == batch.weights.sum()
    with pytest.raises(ValueError, match=r"loss\.negative_groups=2"):
        changed(model, negative_groups=2).loss(params, batch, rng=rng)


def test_log_q_is_a_switch():
    """Without the correction every negative counts as often as it is drawn."""
    model, params = make()
    batch, rng = make_batch(), jax.random.key(5)
    counts = jnp.arange(ITEMS + 1, dtype=jnp.float32)
    popular = changed(model, sampling="popularity")
    without = jax.jit(changed(popular, log_q=False).loss)(
        params, batch, rng=rng, item_counts=counts
    )[0]
    ids, _ = sampling.sample_negatives(jax.random.split(rng)[1], ITEMS, 6, counts, "popularity")
    # M q = 1 corrects nothing
    nothing = sampling.Negatives(ids, jnp.full(6, -jnp.log(6.0)))
    expected = jax.jit(popular.loss)(params, batch, rng=rng, negatives=nothing)[0]
    np.testing.assert_allclose(without, expected, rtol=1e-6)


def test_consistency_pulls_towards_the_view_of_all_items():
    """The sum is L(y) + c (L(z) + Σ w (1 - cos)), and z is no target of the pull's gradient."""
    model, params = make(token_weight=1.0)
    batch, rng = make_batch(), jax.random.key(5)
    batch = batch._replace(weights=np.where(batch.items > 0, 1.0, 0.0).astype(np.float32))
    plain, weight, _ = jax.jit(model.loss)(params, batch, rng=rng)
    pulled = [
        jax.jit(changed(model, consistency=c).loss)(params, batch, rng=rng) for c in (0.25, 0.5)
    ]
    extra = [float(total - plain) for total, _, _ in pulled]
    assert extra[1] == pytest.approx(2 * extra[0], rel=1e-4)
    assert float(pulled[0][1]) == float(weight)
    distance = float(pulled[0][2]["view_distance"])
    assert 0.001 < distance < 1
    # a layout of which everything is raw already has the same two views
    full = SegmentLayout.full(9)
    whole = recommender.build(model.network.config, model.network.loss_config, full, ITEMS)
    theirs = jax.eval_shape(whole.init, jax.random.key(0))
    one = batch._replace(lengths=np.asarray([[9], [6], [1]], np.int32))
    plans = [
        str(jax.make_jaxpr(changed(whole, consistency=c).loss)(theirs, one, rng=rng))
        for c in (0.0, 1.0)
    ]
    assert plans[0] == plans[1]


@pytest.mark.parametrize("backbone", ["hstu", "sasrec", "llama"])
def test_a_raw_view_sees_what_tokens_stand_for(backbone):
    """An event of an old segment moves a raw view even where the tokens are told nothing."""
    config = ModelConfig(backbone=backbone, width=8, heads=2, layers=1, attention="dense")
    model = recommender.build(config, LossConfig("sampled_softmax"), LAYOUT, ITEMS)
    params, batch = model.init(jax.random.key(0)), make_batch()
    lengths = np.asarray([[3, 3, 2]], np.int32)
    args = batch.items[:1, :-1], lengths, batch.times[:1]
    view = LAYOUT.raw_view()
    # one layer: a later item sees an older item itself or not at all
    moved = args[0].copy()
    moved[0, 0] = ITEMS
    recent = LAYOUT.item_positions[6:8]
    for layout, reached in ((LAYOUT, False), (view, True)):
        forward = jax.jit(
            lambda items, layout=layout: model.forward(params, items, layout, *args[1:])
        )
        before, after = (forward(items)[0][0, recent] for items in (args[0], moved))
        assert bool((before != after).all(-1).any()) is reached
    blocked = dataclasses.replace(config, attention="blocked")
    other = recommender.build(blocked, LossConfig("sampled_softmax"), LAYOUT, ITEMS)
    with pytest.raises(ValueError, match="dense"):
        other.forward(params, args[0], view, *args[1:])


@pytest.mark.parametrize("layout", [LAYOUT, SegmentLayout.full(9)])
def test_dropped_items_are_not_seen_but_stay_targets(layout):
    """All dropped: outputs are the same for any items; none is dropped outside of training."""
    network = make()[0].network
    model = recommender.build(network.config, network.loss_config, layout, ITEMS)
    params, batch = model.init(jax.random.key(0)), make_batch()
    lengths = np.asarray([n for n, _ in layout.segments], np.int32)[None].repeat(3, axis=0)
    others = np.where(batch.items > 0, ITEMS, 0).astype(np.int32)

    def outputs(items, dropped, train=True):
        args = items[:, :-1], layout, lengths, batch.times
        key = jax.random.key(7)
        return model.forward(params, *args, train=train, item_dropout=dropped, rng=key)[0]

    forward = jax.jit(outputs, static_argnums=(1, 2))
    np.testing.assert_array_equal(forward(batch.items, 1.0), forward(others, 1.0))
    some, none = forward(batch.items, 0.5), forward(batch.items, 0.0)
    assert float(jnp.abs(some - none).max()) > 0.01
    np.testing.assert_array_equal(forward(batch.items, 0.5, False), none)
    loss = jax.jit(model.loss, static_argnames="item_dropout")
    whole = batch._replace(lengths=lengths)
    weights = [
        loss(params, whole, rng=jax.random.key(0), item_dropout=dropped)[1]
        for dropped in (0.0, 0.5)
    ]
    assert float(weights[0]) == float(weights[1]) > 0
