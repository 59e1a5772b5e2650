"""One optimizer step as a jitted function of values."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jax.stages import Wrapped

from jaxrec.config import Config, TrainConfig
from jaxrec.model import parameters
from jaxrec.runtime import leaves
from jaxrec.runtime import mesh as mesh_lib
from jaxrec.training import optimizer as optimizer_lib
from jaxrec.training.row_updates import RowUpdate
from jaxrec.training.task import Task
from jaxrec.training.text_step import TextUpdate
from jaxrec.training.update import DenseUpdate, Update, choose
from jaxrec.types import Params, Tree


class TrainState(NamedTuple):
    """step: int32 [], updates done; ema: averaged parameters, None where switched off."""

    step: jax.Array
    params: Params
    opt_state: Tree
    ema: Params | None


class StepMetrics(NamedTuple):
    """scalars: name -> float32; squares: float32 [P] squared gradient norm per leaf."""

    scalars: dict[str, jax.Array]
    squares: jax.Array


class Assembled(NamedTuple):
    """State and step of a run.

    new: makes the state before the first step. like: its shapes, dtypes and shardings. step: the
    jitted update, see `make_step`.
    """

    new: Callable[[], TrainState]
    like: TrainState
    step: Wrapped


def assemble(config: Config, task: Task, mesh: Mesh) -> Assembled:
    """State and step of a configuration on a mesh, whose devices need not be there.

    Raises ValueError where train.table_update needs `task.negatives` and there are none;
    ConfigError where the mesh cannot hold the parameters.
    """
    # the key is made while tracing: devices that are not there cannot make one
    shapes = jax.eval_shape(lambda: task.init(jax.random.key(config.seed)))
    is_trained = parameters.is_trained(config)
    frozen = frozenset(path for path in leaves.flatten(shapes) if not is_trained(path))
    update = make_update(config, task, mesh, frozen)

    def new() -> TrainState:
        return init_state(task.init, update, ema=bool(config.train.ema), seed=config.seed)

    like = mesh_lib.abstract(mesh, new, parameters.has_item_rows)
    if isinstance(update, RowUpdate):
        like = mesh_lib.by_rows(like, parameters.has_item_rows)
    formats = mesh_lib.formats(like)
    step = make_step(update, config.train, seed=config.seed, mesh=mesh, state_formats=formats)
    return Assembled(new, like, step)


def make_update(
    config: Config, task: Task, mesh: Mesh, frozen: frozenset[str] = frozenset()
) -> Update:
    """How the task's gradients are computed and applied; frozen: paths that stay as they are."""
    train = config.train
    optimizer = optimizer_lib.adamw(train, frozen)
    if task.texts is not None:
        return TextUpdate(
            loss=task.loss,
            tower=task.texts.tower,
            optimizer=optimizer,
            frozen=frozen,
            config=train,
            mesh=mesh,
        )
    if train.table_update == "adamw":
        return DenseUpdate(task.loss, optimizer, train, mesh)
    if task.negatives is None:
        raise ValueError(f"train.table_update={train.table_update!r}: pass negatives")
    return RowUpdate(
        loss=task.loss,
        negatives=task.negatives,
        optimizer=optimizer,
        model_config=config.model,
        config=train,
        mesh=mesh,
    )


def init_state(
    init: Callable[[jax.Array], Params], update: Update, *, ema: bool, seed: int
) -> TrainState:
    """The state before the first step; pure, so it can be traced for its shapes alone."""
    params = init(jax.random.fold_in(jax.random.key(seed), 0))
    average = jax.tree.map(jnp.copy, params) if ema else None
    return TrainState(jnp.int32(0), params, update.init(params), average)


def step_key(seed: int, step: jax.Array | int) -> jax.Array:
    """The random key of step number `step` (0 is the first)."""
    return jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), 1), step)


def make_step(
    update: Update, config: TrainConfig, *, seed: int, mesh: Mesh, state_formats: TrainState
) -> Wrapped:
    """Compiles on first use: (state, global batch, sampling) -> (state, `StepMetrics`).

    The loss is the mean over the *global* batch (loss sum / weight sum). The random key of a
    step is a function of (seed, step) alone (`step_key`), so a resumed run draws what the
    uninterrupted one would have drawn. A step whose loss or gradient is not finite changes no
    parameter; the caller learns of it from the metrics (`is_finite`, `culprit`).
    """
    rate = optimizer_lib.schedule(config)

    def step(state: TrainState, batch: Tree, sampling: Tree) -> tuple[TrainState, StepMetrics]:
        rng = step_key(seed, state.step)
        gradient = update.gradient(state.params, batch, rng, sampling)
        norm = jnp.sqrt(jnp.sum(gradient.squares))
        finite = jnp.isfinite(gradient.loss) & jnp.isfinite(norm)
        clipped = optimizer_lib.clip(gradient.tree, norm, config.grad_clip_norm)
        params, opt_state = update.apply(
            gradient._replace(tree=clipped),
            state.params,
            state.opt_state,
            step=state.step,
            finite=finite,
        )
        ema = None
        if state.ema is not None:
            average = _averaged(state.ema, params, config.ema, state.step)
            ema = choose(finite, average, state.ema)
        scalars = {
            "loss": gradient.loss,
            "grad_norm": norm,
            "learning_rate": rate(state.step),
            **gradient.metrics,
        }
        after = TrainState(state.step + 1, params, opt_state, ema)
        return after, StepMetrics(scalars, gradient.squares)

    everywhere = mesh_lib.replicated(mesh)
    return jax.jit(
        step,
        in_shardings=(state_formats, update.batch_shardings, everywhere),
        out_shardings=(state_formats, everywhere),
        donate_argnums=0,
    )


def _averaged(ema: Params, params: Params, decay: float, step: jax.Array) -> Params:
    """The moving average after one more step; early on it decays faster than `decay`."""
    count = step.astype(jnp.float32)
    kept = jnp.minimum(decay, (1 + count) / (10 + count))
    return jax.tree.map(lambda a, p: a + (1 - kept) * (p - a), ema, params)


def is_finite(metrics: StepMetrics) -> bool:
    """Whether loss and gradient of a fetched step are finite."""
    return bool(np.isfinite(metrics.scalars["loss"]) and np.isfinite(metrics.scalars["grad_norm"]))


def culprit(metrics: StepMetrics, params: Params) -> str:
    """Names what is not finite in a fetched step: parameters, else the loss or gradients."""
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
    """The first three names and how many more there are."""
    shown = ", ".join(names[:3]) if names else "none"
    return f"{shown} and {len(names) - 3} more" if len(names) > 3 else shown
