"""One step against the same computed by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxrec.config import MeshConfig, validate
from jaxrec.errors import ConfigError
from jaxrec.runtime import mesh as mesh_lib
from jaxrec.training import optimizer as optimizer_lib
from jaxrec.training import step as step_lib
from jaxrec.training.task import Task
from tests.training import standin


def build(config, mesh, loss=standin.loss):
    assembled = step_lib.assemble(config, Task(standin.init, loss), mesh)
    return mesh_lib.create(assembled.new, assembled.like), assembled.step


def run(config, mesh, steps=4, loss=standin.loss):
    state, step = build(config, mesh, loss)
    trace = []
    for number in range(steps):
        batch = mesh_lib.put_batch(mesh, standin.batch_at(number))
        state, metrics = step(state, batch, standin.COUNTS)
        trace.append(jax.device_get(metrics))
    return state, trace


@pytest.fixture(scope="module")
def single():
    config = standin.make_config(grad_clip_norm=0.5)
    return config, *run(config, mesh_lib.make_mesh(MeshConfig(data=1, model=1)))


def test_equals_plain_optax(single):
    config, state, trace = single
    params = standin.init(jax.random.fold_in(jax.random.key(config.seed), 0))
    rate = optimizer_lib.schedule(config.train)
    tx = optax.chain(optax.clip_by_global_norm(0.5), optax.adamw(rate, weight_decay=0.0))
    opt_state, ema = tx.init(params), params
    for number in range(4):
        rng = jax.random.fold_in(jax.random.fold_in(jax.random.key(config.seed), 1), number)
        batch = standin.batch_at(number)

        def mean(params, batch=batch, rng=rng):
            total, weight, _ = standin.loss(
                params, batch, rng=rng, train=True, item_counts=standin.COUNTS
            )
            return total / weight

        value, gradients = jax.value_and_grad(mean)(params)
        np.testing.assert_allclose(trace[number].scalars["loss"], value, rtol=1e-5)
        norm = optax.tree.norm(gradients)
        np.testing.assert_allclose(trace[number].scalars["grad_norm"], norm, rtol=1e-5)
        np.testing.assert_allclose(trace[number].scalars["learning_rate"], rate(number))
        updates, opt_state = tx.update(gradients, opt_state, params)
        params = optax.apply_updates(params, updates)
        decay = min(0.9, (1 + number) / (10 + number))
        ema = jax.tree.map(lambda a, p, d=decay: d * a + (1 - d) * p, ema, params)
    for mine, theirs in ((state.params, params), (state.ema, ema)):
        for a, b in zip(jax.tree.leaves(mine), jax.tree.leaves(theirs), strict=True):
            np.testing.assert_allclose(a, b, rtol=2e-4, atol=1e-6)
    assert int(state.step) == 4


@pytest.mark.parametrize(("data", "model"), [(4, 1), (2, 4)])
def test_every_mesh_computes_the_same(single, data, model):
    config, state, trace = single
    mesh = mesh_lib.make_mesh(MeshConfig(data=data, model=model))
    other, other_trace = run(config, mesh)
    np.testing.assert_allclose(
        [m.scalars["loss"] for m in other_trace], [m.scalars["loss"] for m in trace], rtol=1e-5
    )
    table = other.params["item"]["embedding"]
    assert table.sharding.shard_shape(table.shape)[0] == (standin.ITEMS + 1) // model
    moments = other.opt_state[0].mu["item"]["embedding"]
    assert moments.sharding == table.sharding
    np.testing.assert_allclose(table, state.params["item"]["embedding"], rtol=1e-4, atol=1e-5)


def test_a_batch_without_targets_is_no_division_by_zero():
    def nothing(params, batch, **kwargs):
        total = jnp.sum(params["item"]["embedding"]) * 0
        return total, total, {}

    mesh = mesh_lib.make_mesh(MeshConfig(data=1))
    _, trace = run(standin.make_config(), mesh, 1, nothing)
    assert trace[0].scalars["loss"] == 0
    assert step_lib.is_finite(trace[0])


def bad_gradient(params, batch, **kwargs):
    """The loss is finite, one leaf's gradient is not (d sqrt(x) / dx at 0)."""
    total, weight, metrics = standin.loss(params, batch, **kwargs)
    return total + jnp.sqrt(jnp.sum(params["encoder"]["bias"] ** 2)), weight, metrics


def bad_loss(params, batch, **kwargs):
    total, weight, metrics = standin.loss(params, batch, **kwargs)
    return total + jnp.log(jnp.float32(0.0)), weight, metrics


@pytest.mark.parametrize(
    ("loss", "words"),
    [(bad_gradient, "gradients are not finite in encoder/bias"), (bad_loss, "the loss is -inf")],
)
def test_a_step_that_is_not_finite_changes_nothing_and_is_named(loss, words):
    mesh = mesh_lib.make_mesh(MeshConfig(data=1))
    config = standin.make_config()
    before = jax.device_get(build(config, mesh)[0])
    state, trace = run(config, mesh, 1, loss)
    assert not step_lib.is_finite(trace[0])
    assert words in step_lib.culprit(trace[0], state.params)
    after = jax.device_get(state)
    jax.tree.map(np.testing.assert_array_equal, before._replace(step=0), after._replace(step=0))


def test_a_parameter_that_is_not_finite_is_the_culprit(single):
    _, _, trace = single
    params = standin.init(jax.random.key(0))
    params["encoder"]["kernel"] = params["encoder"]["kernel"].at[0, 0].set(jnp.nan)
    text = step_lib.culprit(trace[0], params)
    assert text == "parameters that are not finite: encoder/kernel"


@pytest.mark.parametrize("shape", [(1, 1), (2, 2)])
def test_a_batch_in_parts_has_the_gradient_of_the_whole(shape):
    """Without randomness; weights differ between parts, so a mean of means would be wrong."""

    def plain(params, batch, *, rng, train, item_counts):
        total, weight, _ = standin.loss(
            params, batch, rng=rng, train=False, item_counts=item_counts
        )
        return total, weight, {"targets": weight}

    mesh = mesh_lib.make_mesh(MeshConfig(data=shape[0], model=shape[1]))
    whole, trace = run(standin.make_config(), mesh, 2, plain)
    parts, other = run(standin.make_config(grad_accum_steps=2), mesh, 2, plain)
    for a, b in zip(trace, other, strict=True):
        assert set(a.scalars) == set(b.scalars)
        for name in a.scalars:
            np.testing.assert_allclose(a.scalars[name], b.scalars[name], rtol=1e-5)
    for a, b in zip(jax.tree.leaves(whole.params), jax.tree.leaves(parts.params), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


def test_parts_that_do_not_divide_are_refused():
    config = standin.make_config(grad_accum_steps=3)
    with pytest.raises(
        ConfigError, match=r"train.grad_accum_steps=3: must divide train.batch_size=8"
    ):
        validate(config)
