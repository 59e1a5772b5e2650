"""One optimizer step as a jitted function of values."""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from jaxrec.config import TrainConfig
from jaxrec.runtime import leaves
from jaxrec.runtime import mesh as mesh_lib
from jaxrec.training import optimizer as optimizer_lib
from jaxrec.types import Batch, Params


class TrainState(NamedTuple):
    """step: int32, updates done; ema: averaged parameters, None where switched off."""

    step: Any
    params: Params
    opt_state: Any
    ema: Params | None


class StepMetrics(NamedTuple):
    """scalars: name -> float32; squares: float32 [P] squared gradient norm per leaf."""

    scalars: dict[str, Any]
    squares: Any


class Loss(Protocol):
    """`Model.loss`: (loss sum, weight sum, metrics) of a batch."""

    def __call__(
        self,
        params: Params,
        batch: Batch,
        *,
        rng: jax.Array,
        train: bool,
        item_counts: jax.Array | None,
    ) -> tuple[jax.Array, jax.Array, dict[str, jax.Array]]: ...


class NonFiniteError(RuntimeError):
    """Loss or gradient is not a number: names the step and the culprit."""


TrainStep = Callable[[TrainState, Batch, Any], tuple[TrainState, StepMetrics]]


def init_state(
    init: Callable[[jax.Array], Params],
    optimizer: optax.GradientTransformation,
    config: TrainConfig,
    seed: int,
) -> TrainState:
    """The state before the first step; pure, so it can be traced for its shapes alone."""
    params = init(jax.random.fold_in(jax.random.key(seed), 0))
    ema = jax.tree.map(jnp.copy, params) if config.ema else None
    return TrainState(jnp.int32(0), params, optimizer.init(params), ema)


def make_step(
    loss: Loss,
    optimizer: optax.GradientTransformation,
    config: TrainConfig,
    seed: int,
    mesh: Mesh,
    state_shardings: TrainState,
) -> TrainStep:
    """Compiles on first use: (state, global batch, item_counts) -> (state, metrics).

    The loss is the mean over the *global* batch (loss sum / weight sum). The random key of a
    step is a function of (seed, step) alone, so a resumed run draws what the uninterrupted
    one would have drawn. A step whose loss or gradient is not finite changes no parameter: the
    caller finds it in the metrics (`culprit`) with the parameters as they were.
    """
    rate = optimizer_lib.schedule(config)

    def step(state: TrainState, batch: Batch, item_counts: Any) -> tuple[TrainState, StepMetrics]:
        rng = jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), 1), state.step)

        def mean(params: Params) -> tuple[jax.Array, dict[str, jax.Array]]:
            total, weight, metrics = loss(
                params, batch, rng=rng, train=True, item_counts=item_counts
            )
            return total / jnp.where(weight > 0, weight, 1.0), metrics

        (value, metrics), gradients = jax.value_and_grad(mean, has_aux=True)(state.params)
        squares = optimizer_lib.squared_norms(gradients)
        norm = jnp.sqrt(jnp.sum(squares))
        clipped = optimizer_lib.clip(gradients, norm, config.clip)
        updates, opt_state = optimizer.update(clipped, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        ema = None
        if state.ema is not None:  # the average forgets the start sooner while it is young
            count = state.step.astype(jnp.float32)
            decay = jnp.minimum(config.ema, (1 + count) / (10 + count))
            ema = jax.tree.map(lambda a, p: a + (1 - decay) * (p - a), state.ema, params)
        sound = jnp.isfinite(value) & jnp.isfinite(norm)
        kept = jax.tree.map(
            lambda new, old: jnp.where(sound, new, old),
            (params, opt_state, ema),
            (state.params, state.opt_state, state.ema),
        )
        scalars = {"loss": value, "grad_norm": norm, "learning_rate": rate(state.step), **metrics}
        return TrainState(state.step + 1, *kept), StepMetrics(scalars, squares)

    everywhere = mesh_lib.replicated(mesh)
    return jax.jit(
        step,
        in_shardings=(state_shardings, mesh_lib.batch_sharding(mesh), everywhere),
        out_shardings=(state_shardings, everywhere),
        donate_argnums=0,
    )


def is_sound(metrics: StepMetrics) -> bool:
    """Whether loss and gradient of a fetched step are finite."""
    return bool(np.isfinite(metrics.scalars["loss"]) and np.isfinite(metrics.scalars["grad_norm"]))


def culprit(metrics: StepMetrics, params: Params) -> str:
    """What is not finite in a fetched step, in words: parameters, else gradients, else loss."""
    finite = jax.device_get(jax.jit(lambda tree: jax.tree.map(_all_finite, tree))(params))
    broken = [name for name, ok in leaves.flatten(finite).items() if not ok]
    if broken:
        return f"parameters that are not finite: {_some(broken)}"
    names = leaves.flatten(params)
    bad = [name for name, s in zip(names, metrics.squares, strict=True) if not np.isfinite(s)]
    loss = float(metrics.scalars["loss"])
    if not np.isfinite(loss):
        return f"the loss is {loss}; parameters are finite, gradients are not in {_some(bad)}"
    return f"the loss is {loss:.6g}, gradients are not finite in {_some(bad or ['their sum'])}"


def _all_finite(x: jax.Array) -> jax.Array:
    return jnp.all(jnp.isfinite(x))


def _some(names: list[str]) -> str:
    shown = ", ".join(names[:3]) if names else "none"
    return f"{shown} and {len(names) - 3} more" if len(names) > 3 else shown
