import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxrec.objective import full_softmax, losses, sampling
from jaxrec.objective.logits import unit
from jaxrec.objective.losses import Contrast
from jaxrec.types import ItemVectors
from tests.reference import losses as reference

P, V, D, M = 11, 23, 8, 9


def problem(seed=0, positions=P, items=V, width=D, negatives=M):
    rng = np.random.default_rng(seed)
    normal = functools.partial(rng.normal, size=None)
    values = {
        "x": normal(size=(positions, width)),
        "table": normal(size=(items + 1, width)),
        "negative_ids": rng.integers(1, items + 1, negatives),
        "targets": rng.integers(1, items + 1, positions),
        "weights": rng.uniform(0.5, 2, positions) * (rng.uniform(size=positions) < 0.7),
    }
    values["table"][0] = 50.0  # a padding row that would win if it were a candidate
    kinds = {"targets": np.int32, "negative_ids": np.int32}
    return {k: v.astype(kinds.get(k, np.float32)) for k, v in values.items()}


def shared(p):
    """Arguments of the losses against shared negatives."""
    table = p["table"]
    ids = p["negative_ids"]
    return p["x"], table[p["targets"]], table[ids], ids, p["targets"], p["weights"]


def contrast(p, **changed):
    x, positives, negatives, ids, targets, weights = shared(p)
    return Contrast(x, positives, negatives, targets, ids, weights)._replace(**changed)


def our_full(x, table, targets, weights, **options):
    return full_softmax.full_softmax(x, ItemVectors(table), targets, weights, **options)


def plain_full(x, table, targets, weights, scale=1.0):
    log_p = jax.nn.log_softmax(scale * x @ table[1:].T)
    return -jnp.sum(weights * jnp.take_along_axis(log_p, targets[:, None] - 1, 1)[:, 0])


def close(actual, expected, tolerance=2e-6):
    for a, e in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        a, e = np.asarray(a), np.asarray(e)
        assert np.max(np.abs(a - e)) <= tolerance * max(1.0, np.max(np.abs(e)))


@pytest.mark.parametrize("chunk", [4, 1000])
@pytest.mark.parametrize("vocab_chunk", [5, 24, 1000])
def test_full_softmax_value_and_gradient(chunk, vocab_chunk):
    p = problem()

    def ours(x, table, scale):
        return our_full(
            x,
            table,
            p["targets"],
            p["weights"],
            scale=scale,
            chunk=chunk,
            vocab_chunk=vocab_chunk,
        )

    total, weight = ours(p["x"], p["table"], 1.7)
    close((total, weight), reference.full_softmax(**full(p), scale=1.7))
    value, gradient = jax.jit(jax.value_and_grad(lambda *a: ours(*a)[0], (0, 1, 2)))(
        p["x"], p["table"], jnp.float32(1.7)
    )
    plain = jax.grad(
        lambda x, t, s: plain_full(x, t, p["targets"], p["weights"], s), argnums=(0, 1, 2)
    )(p["x"], p["table"], 1.7)
    close(value, total)
    close(gradient, plain)


def full(p):
    return {name: p[name] for name in ("x", "table", "targets", "weights")}


@settings(deadline=None, max_examples=8)
@given(
    st.integers(1, 9), st.integers(1, 12), st.integers(1, 5), st.integers(1, 5), st.integers(0, 99)
)
def test_full_softmax_over_odd_shapes(positions, items, chunk, vocab_chunk, seed):
    p = problem(seed, positions, items, 3)
    actual = our_full(**full(p), chunk=chunk, vocab_chunk=vocab_chunk)
    close(actual, reference.full_softmax(**full(p)))


def negatives_loss(kind, p, **options):
    if kind == "sampled":
        return losses.sampled_softmax(contrast(p), **options)
    if kind == "bce":
        return losses.bce(contrast(p), **options)
    return losses.gbce(contrast(p), beta=losses.gbce_beta(M, V, 0.6), **options)


def negatives_reference(kind, p, **options):
    if kind == "sampled":
        return reference.sampled_softmax(*shared(p), **options)
    beta = 1.0 if kind == "bce" else reference.gbce_beta(M, V, 0.6)
    return reference.binary(*shared(p), beta=beta, **options)


KINDS = ("sampled", "bce", "gbce")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("false_negative", [0.3, 1.0])
def test_losses_against_negatives(kind, false_negative):
    p = problem(1)
    p["negative_ids"][:2] = p["targets"][0], 0  # its own target and padding
    p["weights"][0] = 1.5
    options = {"scale": 1.3, "false_negative": false_negative}
    actual = negatives_loss(kind, p, chunk=4, **options)
    close(actual, negatives_reference(kind, p, **options))


def test_false_negative_changes_the_loss():
    p = problem(1)
    open_, masked = (losses.sampled_softmax(contrast(p), false_negative=f)[0] for f in (1.0, 0.0))
    assert masked < open_ - 0.1


def test_log_q():
    p = problem(2)
    log_q = np.log(np.random.default_rng(5).dirichlet(np.ones(V + 1))).astype(np.float32)
    of_negatives = log_q[p["negative_ids"]]
    actual = losses.sampled_softmax(contrast(p), chunk=3, log_q=of_negatives)
    close(actual, reference.sampled_softmax(*shared(p), log_q=of_negatives))


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_against_negatives(kind):
    """Chunked gradients equal those of autodiff over all positions at once."""
    p = problem(3)

    def ours(chunk, x, positives, negatives, scale):
        q = contrast(p, x=x, positives=positives, negatives=negatives)
        options = {"scale": scale, "false_negative": 0.4, "chunk": chunk}
        if kind == "sampled":
            return losses.sampled_softmax(q, **options)[0]
        if kind == "bce":
            return losses.bce(q, **options)[0]
        return losses.gbce(q, beta=losses.gbce_beta(M, V, 0.75), **options)[0]

    def plain(x, positives, negatives, scale):
        own = scale * jnp.sum(x * positives, -1)
        logits = scale * x @ negatives.T
        norms = jnp.outer(jnp.linalg.norm(positives, axis=-1), jnp.linalg.norm(negatives, axis=-1))
        mask = (positives @ negatives.T / norms <= 0.4) & (
            p["negative_ids"][None, :] != p["targets"][:, None]
        )
        if kind == "sampled":
            every = jnp.concatenate([own[:, None], jnp.where(mask, logits, -1e30)], -1)
            values = -jax.nn.log_softmax(every)[:, 0]
        else:
            beta = 1.0 if kind == "bce" else reference.gbce_beta(M, V, 0.75)
            rest = jnp.sum(jnp.where(mask, jax.nn.softplus(logits), 0), -1)
            values = (beta * jax.nn.softplus(-own) + rest) / (mask.sum(-1) + 1)
        return jnp.sum(p["weights"] * values)

    arguments = (*(jnp.asarray(a) for a in shared(p)[:3]), jnp.float32(1.3))
    value, gradient = jax.value_and_grad(functools.partial(ours, 4), (0, 1, 2, 3))(*arguments)
    close(value, ours(4, *arguments))
    expected = jax.value_and_grad(plain, (0, 1, 2, 3))(*arguments)
    close((value, gradient), expected)


@pytest.mark.parametrize("kind", KINDS)
def test_offsets(kind):
    """An offset equals one more column per position in every vector, gradients included."""
    p = problem(4)
    rng = np.random.default_rng(4)
    positive = rng.normal(size=(P, 1)).astype(np.float32)
    negative = rng.normal(size=(P, M)).astype(np.float32)

    def ours(positive, negative, scale):
        offset = contrast(p, offsets=losses.Offsets(positive, negative))
        if kind == "sampled":
            return losses.sampled_softmax(offset, scale=scale, chunk=4)[0]
        beta = 1.0 if kind == "bce" else losses.gbce_beta(M, V, 0.6)
        return losses.gbce(offset, beta=beta, scale=scale, chunk=4)[0]

    def wider(positive, negative, scale):
        x = jnp.concatenate([p["x"], jnp.eye(P)], -1)
        own = jnp.concatenate([shared(p)[1], positive * jnp.eye(P)], -1)
        others = jnp.concatenate([shared(p)[2], negative.T], -1)
        wide = contrast(p, x=x, positives=own, negatives=others)
        if kind == "sampled":
            return losses.sampled_softmax(wide, scale=scale)[0]
        beta = 1.0 if kind == "bce" else losses.gbce_beta(M, V, 0.6)
        return losses.gbce(wide, beta=beta, scale=scale)[0]

    arguments = (jnp.asarray(positive), jnp.asarray(negative), jnp.float32(1.3))
    expected = jax.value_and_grad(wider, (0, 1, 2))(*arguments)
    close(jax.value_and_grad(ours, (0, 1, 2))(*arguments), expected)
    assert float(jnp.abs(expected[1][1]).max()) > 0


def every_loss(p, **options):
    yield our_full(**full(p), **options)
    for kind in KINDS:
        yield negatives_loss(kind, p, **options)


def test_masked_equals_filtered():
    """Positions of weight 0 or target 0 change nothing, with NaN vectors either."""
    p = problem(4)
    keep = p["weights"] > 0
    assert 0 < keep.sum() < P
    masked = dict(p, x=np.where(keep[:, None], p["x"], np.nan).astype(np.float32))
    padded = dict(masked, weights=np.ones(P, np.float32) * np.where(keep, p["weights"], 1))
    padded["targets"] = np.where(keep, p["targets"], 0)
    per_row = ("x", "targets", "weights")
    filtered = {k: v[keep] if k in per_row else v for k, v in p.items()}
    for a, b, c in zip(every_loss(masked), every_loss(padded), every_loss(filtered), strict=True):
        close(a, c)
        close(b, c)

    def gradient(q):
        return jax.grad(lambda x, t: our_full(**{**full(q), "x": x, "table": t})[0], (0, 1))(
            jnp.asarray(q["x"]), jnp.asarray(q["table"])
        )

    dx, dtable = gradient(masked)
    fx, ftable = gradient(filtered)
    assert not np.any(np.asarray(dx)[~keep])
    close((dx[keep], dtable), (fx, ftable))


def test_nothing_weighted_is_zero():
    p = problem()
    p["weights"][:] = 0
    for total, weight in every_loss(p):
        assert (float(total), float(weight)) == (0.0, 0.0)


def test_extreme_logits_stay_finite():
    p = problem(6)
    p["weights"][:] = 1
    for total, _ in every_loss(p, scale=1e4):
        assert np.isfinite(total)
    gradient = jax.grad(lambda x: sum(t for t, _ in every_loss(dict(p, x=x), scale=1e4)))(
        jnp.asarray(p["x"])
    )
    assert np.all(np.isfinite(gradient))


def test_bfloat16_queries_accumulate_in_float32():
    p = problem(7, positions=64, items=300)
    half = dict(p, x=jnp.asarray(p["x"], jnp.bfloat16))
    for (a, _), (b, _) in zip(every_loss(half), every_loss(p), strict=True):
        assert a.dtype == jnp.float32
        assert abs(a - b) < 0.01 * abs(b)
    dx, dtable = jax.grad(lambda x, t: our_full(**{**full(p), "x": x, "table": t})[0], (0, 1))(
        half["x"], jnp.asarray(p["table"])
    )
    assert (dx.dtype, dtable.dtype) == (jnp.bfloat16, jnp.float32)


def test_unit():
    x = jnp.asarray([[3.0, 4.0], [0.0, 0.0], [1e-20, 0.0]])
    np.testing.assert_allclose(unit(x)[0], [0.6, 0.8], rtol=1e-6)
    assert not np.any(np.asarray(unit(x)[1]))
    gradient = jax.grad(lambda x: jnp.sum(unit(x)))(x)
    assert np.all(np.isfinite(gradient))


def test_gbce_without_calibration_is_bce():
    p = problem(8)
    close(losses.gbce(contrast(p), beta=losses.gbce_beta(M, V, 0.0)), losses.bce(contrast(p)))


@pytest.mark.skipif(jax.device_count() < 4, reason="needs 4 devices")
@pytest.mark.parametrize("rows", [None, "model"])
def test_positions_and_items_sharded_over_a_mesh(rows):
    """Values and gradients on a 2 x 2 mesh equal those of one device."""
    p = problem(10, positions=12, items=31)
    auto = (jax.sharding.AxisType.Auto,) * 2
    mesh = jax.make_mesh((2, 2), ("data", "model"), axis_types=auto, devices=jax.devices()[:4])

    def loss(p):
        full_total, _ = our_full(**full(p), vocab_chunk=16, chunk=4)
        return full_total + losses.bce(contrast(p), chunk=4)[0]

    def gradient(x, table):
        return jax.value_and_grad(lambda x, t: loss({**p, "x": x, "table": t}), (0, 1))(x, table)

    x, table = jnp.asarray(p["x"]), jnp.asarray(p["table"])
    alone = gradient(x, table)
    x = jax.device_put(x, jax.NamedSharding(mesh, jax.P("data")))
    table = jax.device_put(table, jax.NamedSharding(mesh, jax.P(rows)))
    with jax.set_mesh(mesh):
        close(jax.jit(gradient)(x, table), alone)


def test_temporary_memory_is_independent_of_catalog_times_positions():
    def temporary(positions, items, width=8):
        def loss(x, table, targets, weights):
            return our_full(x, table, targets, weights, chunk=256, vocab_chunk=2048)[0]

        def of(shape, kind=jnp.float32):
            return jax.ShapeDtypeStruct(shape, kind)

        arguments = (
            of((positions, width)),
            of((items + 1, width)),
            of((positions,), jnp.int32),
            of((positions,)),
        )
        compiled = jax.jit(jax.grad(loss, (0, 1))).lower(*arguments).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    small = temporary(4_000, 20_000)
    # what may grow: copies of x, positives and their gradients, and of the table's gradient
    vectors = 4 * 8 * 4
    assert temporary(16_000, 20_000) - small <= 8 * vectors * 12_000
    assert temporary(4_000, 200_000) - small <= 4 * vectors * 180_000
    assert temporary(16_000, 200_000) < 4_000 * 20_000 * 4 / 2


def test_corrected_sampling_approaches_the_full_softmax():
    p = problem(9)
    counts = jnp.arange(V + 1) ** 2
    ids, log_q = sampling.sample_negatives(jax.random.key(1), V, 30_000, counts, "popularity")
    table = jnp.asarray(p["table"])
    drawn = contrast({**p, "table": table, "negative_ids": ids})
    exact = our_full(**full(p), scale=0.5)[0]
    corrected = losses.sampled_softmax(drawn, scale=0.5, log_q=log_q[ids])[0]
    assert abs(corrected - exact) < 0.01 * exact
    uncorrected = losses.sampled_softmax(drawn, scale=0.5)[0]
    assert abs(uncorrected - exact) > 0.2 * exact


def test_errors_name_the_argument():
    p = problem()
    with pytest.raises(ValueError, match="chunk=0"):
        our_full(**full(p), chunk=0)


@pytest.mark.parametrize("vocab_chunk", [5, 1000])
def test_item_biases_of_the_full_softmax(vocab_chunk):
    """Value and gradients, those of the biases too, against autodiff over the dense scores."""
    p = problem(11)
    bias = np.random.default_rng(11).normal(size=V + 1).astype(np.float32)

    def ours(x, table, bias):
        items = ItemVectors(table, bias)
        options = {"scale": 0.7, "chunk": 4, "vocab_chunk": vocab_chunk}
        return full_softmax.full_softmax(x, items, p["targets"], p["weights"], **options)[0]

    def plain(x, table, bias):
        log_p = jax.nn.log_softmax(0.7 * (x @ table[1:].T + bias[None, 1:]))
        picked = jnp.take_along_axis(log_p, p["targets"][:, None] - 1, 1)[:, 0]
        return -jnp.sum(p["weights"] * picked)

    arguments = tuple(jnp.asarray(a) for a in (p["x"], p["table"], bias))
    expected = jax.value_and_grad(plain, (0, 1, 2))(*arguments)
    close(jax.value_and_grad(ours, (0, 1, 2))(*arguments), expected)
    assert float(jnp.abs(expected[1][2]).max()) > 0
