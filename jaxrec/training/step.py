"""One optimizer step as a jitted function of values."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from jaxrec import config as config_lib
from jaxrec.config import Config, TrainConfig
from jaxrec.items import hashed
from jaxrec.nn.item_tower import ItemTower
from jaxrec.runtime import leaves
from jaxrec.runtime import mesh as mesh_lib
from jaxrec.training import optimizer as optimizer_lib
from jaxrec.training import row_updates, text_step
from jaxrec.training.gradient import mean_gradient
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


# the batch is a `text_step.TextBatch` where an item tower is trained
TrainStep = Callable[[TrainState, Any, Any], tuple[TrainState, StepMetrics]]


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


class Assembled(NamedTuple):
    """new: makes the state; like: its shapes and shardings; step: the jitted update."""

    new: Callable[[], TrainState]
    like: TrainState
    step: Any


def assemble(
    config: Config,
    init: Callable[[jax.Array], Params],
    loss: Any,
    negatives: Callable[[jax.Array, Any], Any] | None,
    mesh: Mesh,
    tower: ItemTower | None = None,
) -> Assembled:
    """State and step of a configuration on a mesh, whose devices need not be there.

    negatives: needed by train.table_update other than adamw, see `make_table_step`; raises
    ValueError where it is missing. tower: the item tower where it is trained, its parameters are
    among those of `init` (`text_step.TOWER`).
    """
    train = dataclasses.replace(config.train, frozen=config_lib.frozen(config))
    by_rows = train.table_update != "adamw"
    optimizer = (row_updates.optimizer if by_rows else optimizer_lib.adamw)(train)

    def new() -> TrainState:
        return init_state(init, optimizer, train, config.seed)

    like = mesh_lib.abstract(mesh, new)
    settings = optimizer, train, config.seed, mesh, jax.tree.map(lambda x: x.sharding, like)
    if tower is not None:
        gradient = text_step.gradient_of(tower, optimizer_lib.moves(train))
        step = make_step(loss, *settings, gradient=gradient, rows=text_step.shardings(mesh))
        return Assembled(new, like, step)
    if not by_rows:
        return Assembled(new, like, make_step(loss, *settings))
    if negatives is None:
        raise ValueError(f"train.table_update={train.table_update!r}: pass negatives")
    shared = config.model.item_hash != "none"
    rows_of = functools.partial(hashed.rows_of, config.model) if shared else None
    return Assembled(new, like, make_table_step(loss, negatives, *settings, rows_of=rows_of))


def make_step(
    loss: Loss,
    optimizer: optax.GradientTransformation,
    config: TrainConfig,
    seed: int,
    mesh: Mesh,
    state_shardings: TrainState,
    gradient: Any = mean_gradient,
    rows: Any = None,
) -> TrainStep:
    """Compiles on first use: (state, global batch, item_counts) -> (state, metrics).

    gradient: as `mean_gradient`. rows: shardings of the batch (default: users over all devices).

    The loss is the mean over the *global* batch (loss sum / weight sum). The random key of a
    step is a function of (seed, step) alone, so a resumed run draws what the uninterrupted
    one would have drawn. A step whose loss or gradient is not finite changes no parameter: the
    caller finds it in the metrics (`culprit`) with the parameters as they were.
    """
    rate = optimizer_lib.schedule(config)

    def step(state: TrainState, batch: Any, item_counts: Any) -> tuple[TrainState, StepMetrics]:
        rng = jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), 1), state.step)

        def total(params: Params, part: Batch, key: jax.Array, **more: Any) -> Any:
            return loss(params, part, rng=key, train=True, item_counts=item_counts, **more)

        value, metrics, gradients = gradient(
            total, state.params, batch, rng, config.grad_accum_steps, mesh
        )
        squares = optimizer_lib.squared_norms(gradients)
        norm = jnp.sqrt(jnp.sum(squares))
        clipped = optimizer_lib.clip(gradients, norm, config.grad_clip_norm)
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
        in_shardings=(state_shardings, rows or mesh_lib.batch_sharding(mesh), everywhere),
        out_shardings=(state_shardings, everywhere),
        donate_argnums=0,
    )


def make_table_step(
    loss: Callable[..., tuple[jax.Array, jax.Array, dict[str, jax.Array]]],
    negatives: Callable[[jax.Array, Any], Any],
    optimizer: optax.GradientTransformation,
    config: TrainConfig,
    seed: int,
    mesh: Mesh,
    state_shardings: TrainState,
    rows_of: Callable[[Any], jax.Array] | None = None,
) -> TrainStep:
    """`make_step` that reads and writes only the rows of the item table that the step touches.

    negatives: (key, item_counts) -> value whose `ids` int32 [M] are drawn; the loss gets it as
    `negatives` in place of the counts, with ids that name rows of the table it is given: that
    of the touched rows (`tables`). optimizer: `row_updates.optimizer`. rows_of:
    of items that share rows, `hashed.rows_of`.
    """
    rate = optimizer_lib.schedule(config)
    everywhere = mesh_lib.replicated(mesh)

    def step(state: TrainState, batch: Batch, item_counts: Any) -> tuple[TrainState, StepMetrics]:
        rng = jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), 1), state.step)
        drawn = negatives(rng, item_counts)
        stored = row_updates.name_of(state.params)
        table, rest = state.params[stored], row_updates.without(state.params)
        ids = jnp.concatenate([batch.items.reshape(-1), drawn.ids])
        ids = jax.lax.with_sharding_constraint(ids, everywhere)
        used = row_updates.small(table, ids, mesh, rows_of)
        count = batch.items.size
        items = used.places[:count].reshape(batch.items.shape)
        items = jax.lax.with_sharding_constraint(items, mesh_lib.batch_sharding(mesh))
        small = batch._replace(items=items)
        sampled = drawn._replace(ids=used.places[count:])

        def total(params: Params, part: Batch, key: jax.Array) -> Any:
            params = {
                **row_updates.without(params),
                row_updates.TABLE: used.of_items(params[stored]),
            }
            return loss(params, part, rng=key, train=True, item_counts=None, negatives=sampled)

        given = {**rest, stored: used.touched.rows}
        value, metrics, gradients = mean_gradient(
            total, given, small, rng, config.grad_accum_steps, mesh
        )
        squares = optimizer_lib.squared_norms(gradients)
        norm = jnp.sqrt(jnp.sum(squares))
        sound = jnp.isfinite(value) & jnp.isfinite(norm)
        clipped = optimizer_lib.clip(gradients, norm, config.grad_clip_norm)
        updates, dense = optimizer.update(
            row_updates.without(clipped), state.opt_state["dense"], rest
        )
        kept = jax.tree.map(
            lambda new, old: jnp.where(sound, new, old),
            (optax.apply_updates(rest, updates), dense),
            (rest, state.opt_state["dense"]),
        )
        table, rows = row_updates.update(
            table,
            state.opt_state["rows"],
            used.touched,
            clipped[stored],
            config=config,
            rate=rate(state.step),
            count=state.step,
            sound=sound,
            mesh=mesh,
        )
        params = {**kept[0], stored: table}
        scalars = {"loss": value, "grad_norm": norm, "learning_rate": rate(state.step), **metrics}
        new = TrainState(state.step + 1, params, {"dense": kept[1], "rows": rows}, None)
        return new, StepMetrics(scalars, squares)

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
