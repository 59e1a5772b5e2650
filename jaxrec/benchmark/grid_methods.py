"""The methods that the benchmark compares: a request and a training step of each.

A request computes the query vector of each user's next event. All methods start from NumPy
arrays on the host, so the transfer of their input counts. Ranking the catalog is the same for
all methods and is left out.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxrec.benchmark.grid_config import WITH_TOKENS, GridConfig
from jaxrec.benchmark.workload import last_query, random_batch, random_events, stacked
from jaxrec.config import Config, MeshConfig
from jaxrec.data.vocabulary import Vocabulary
from jaxrec.items import table
from jaxrec.items.table import RowSource
from jaxrec.layout import SegmentLayout
from jaxrec.model import cost, recommender, states
from jaxrec.model.recommender import LossMetrics, Model
from jaxrec.objective.sampling import Negatives
from jaxrec.runtime import mesh as mesh_lib
from jaxrec.serving import Catalog, Recommender, state_rows
from jaxrec.state_store.encodings import decode_state, encode_state
from jaxrec.training import step as step_lib
from jaxrec.training.task import Task
from jaxrec.types import PAD, Array, Batch, Params, Queries, Targets

EVENT_BYTES = 8  # item and time, int32


class Shape(NamedTuple):
    """A history of `history` events in equal segments; the last one is the recent window."""

    history: int
    segments: int

    @property
    def window(self) -> int:
        """Events per segment."""
        return self.history // self.segments


class Request(NamedTuple):
    """A compiled request of a batch of users.

    call: answers it. flops: of the batch, counted from the layout. state_bytes: kept per user.
    """

    call: Callable[[], object]
    compiled: jax.stages.Compiled
    flops: int
    state_bytes: int


@dataclasses.dataclass(frozen=True)
class MeanPooled(Model):
    """A baseline: one position per past segment, the mean of its item vectors, then recent events.

    The network's layout is a single segment of `segments + window` positions. Histories fill
    the layout; padding does not count in a mean.
    """

    segments: int = 0
    size: int = 0

    def means(self, params: Params, items: Array) -> jax.Array:
        """Means [B, segments, W] of items [B, segments x size]: what a state would keep."""
        vectors = table.lookup(self.config, params, items).embedding
        return mean_of_segments(vectors, items, self.size)

    def outputs(
        self,
        params: Params,
        means: Array,
        items: Array,
        times: Array,
        *,
        train: bool = False,
        rng: jax.Array | None = None,
    ) -> jax.Array:
        """Outputs [B, window, D] over recent items [B, window]; times: [B, positions + 1]."""
        recent = table.lookup(self.config, params, items).embedding
        x = jnp.concatenate([means, recent], axis=1)
        lengths = jnp.full((x.shape[0], 1), x.shape[1], jnp.int32)
        rngs = None if rng is None else {"dropout": rng}
        y, _ = self.network.apply(
            {"params": params}, x, self.layout, lengths, times, train=train, rngs=rngs
        )
        return y[:, self.segments :]

    def query(self, params: Params, means: Array, items: Array, times: Array) -> Queries:
        """Queries behind the recent items; arguments as in `outputs`."""
        return self.queries(params, self.outputs(params, means, items, times)[:, -1])

    def window_loss(
        self,
        params: Params,
        batch: Batch,
        *,
        rng: jax.Array | None = None,
        train: bool = False,
        item_counts: Array | None = None,
        negatives: Negatives | None = None,
        rows: RowSource | None = None,
    ) -> LossMetrics:
        """`Model.loss` over the recent window; gradients also flow through the means.

        batch: of full histories, as for a model without tokens. Raises ValueError for given rows
        (train.table_update other than adamw): they would be read twice.
        """
        if rows is not None:
            raise ValueError("mean-pooled histories need train.table_update=adamw")
        dropout_rng, sample_rng = (None, None) if rng is None else jax.random.split(rng)
        past = self.segments * self.size
        ends = np.arange(1, self.segments + 1) * self.size - 1
        times = jnp.concatenate([batch.times[:, ends], batch.times[:, past:]], axis=1)
        items = jnp.asarray(batch.items)
        recent, ids = items[:, past:-1], items[:, past + 1 :]
        weights = jnp.where(ids == PAD, 0.0, batch.weights[:, past + 1 :])
        positions = np.arange(recent.shape[1])
        compare = self.comparison(
            params,
            batch,
            Targets(positions, positions + 1, ids, weights),
            rng=sample_rng,
            item_counts=item_counts,
            negatives=negatives,
        )
        means = self.means(params, items[:, :past])
        total, weight = compare(
            self.outputs(params, means, recent, times, train=train, rng=dropout_rng)
        )
        return total, weight, {"targets": weight}


def mean_of_segments(vectors: Array, items: Array, size: int) -> jax.Array:
    """Means [B, S, D] of vectors [B, S x size, D]; padding is left out, a mean of none is 0."""
    users, events, width = vectors.shape
    valid = jnp.asarray(items > 0).astype(vectors.dtype).reshape(users, -1, size, 1)
    segments = vectors.reshape(users, events // size, size, width) * valid
    return segments.sum(2) / jnp.maximum(valid.sum(2), 1)


def run_config(config: GridConfig, method: str, shape: Shape, tokens: int) -> Config:
    """The configuration of a training or serving run with this method's sizes."""
    run = Config()
    state = "embedding" if method == "compressed_embedding" else "kv"
    run.model = dataclasses.replace(config.model, state=state)
    run.loss = config.loss
    run.layout.segment_size, run.layout.tokens = shape.window, tokens or 1
    run.layout.max_segments, run.layout.recent_min = shape.segments - 1, 1
    run.train.batch_size = config.train_batch
    return run


def model_of(config: GridConfig, method: str, shape: Shape, tokens: int) -> Model:
    """The model of a method."""
    run = run_config(config, method, shape, tokens)
    past = shape.segments - 1
    layout = SegmentLayout.full(shape.history)
    if method in WITH_TOKENS:
        layout = SegmentLayout.from_config(run.layout)
    elif method == "recent":
        layout = SegmentLayout.full(shape.window)
    elif method == "semi_local":
        layout = SegmentLayout.semi_local(shape.history, config.local_window, config.local_prefix)
    elif method == "mean_pooled":
        layout = SegmentLayout.full(past + shape.window)
    built = recommender.build(run.model, run.loss, layout, config.catalog)
    if method == "mean_pooled":
        return MeanPooled(built.network, built.num_items, past, shape.window)
    return built


def weights(model: Model) -> Callable[[jax.Array], Params]:
    """An `init` with the shapes of `Model.init` that compiles fast: sine waves instead of noise.

    Timings do not depend on the values, and compiling the initialisers of every method would
    take longer than everything that is measured.
    """
    leaves, tree = jax.tree.flatten(jax.eval_shape(model.init, jax.random.key(0)))

    def init(_: jax.Array) -> Params:
        filled = [
            (0.05 * jnp.sin(jnp.arange(leaf.size) * 0.7 + number)).reshape(leaf.shape)
            for number, leaf in enumerate(leaves)
        ]
        typed = [w.astype(leaf.dtype) for w, leaf in zip(filled, leaves, strict=True)]
        return jax.tree.unflatten(tree, typed)

    return init


def request(config: GridConfig, method: str, shape: Shape, tokens: int, batch: int) -> Request:
    """A compiled request of `batch` users whose histories fill the shape."""
    items, times = stacked(random_events(batch, shape.history, config.catalog))
    if method in WITH_TOKENS:
        return _stored(config, method, shape, tokens, items, times)
    model = model_of(config, method, shape, tokens)
    params = jax.jit(weights(model))(jax.random.key(0))
    query: Callable[..., Queries] = functools.partial(last_query, model, batch)
    inputs: tuple[np.ndarray, ...] = (items, times)
    state_bytes = shape.history * EVENT_BYTES
    if isinstance(model, MeanPooled):
        past = model.segments * model.size
        ends = np.arange(1, model.segments + 1) * model.size - 1
        clock = np.concatenate([times[:, ends], times[:, past:], times[:, -1:]], axis=1)
        means = np.asarray(jax.jit(model.means)(params, items[:, :past]))
        query, inputs = model.query, (means, items[:, past:], clock)
        state_bytes = means[0].nbytes + shape.window * EVENT_BYTES
    elif method == "recent":
        inputs = (items[:, -shape.window :], times[:, -shape.window :])
        state_bytes = shape.window * EVENT_BYTES
    served = jax.jit(query)
    compiled = served.lower(params, *inputs).compile()
    flops = batch * cost.forward_flops(model.network.config, model.layout)
    return Request(functools.partial(served, params, *inputs), compiled, flops, state_bytes)


def _stored(
    config: GridConfig,
    method: str,
    shape: Shape,
    tokens: int,
    items: np.ndarray,
    times: np.ndarray,
) -> Request:
    """A request from rows as the store holds them, with the query of `Recommender.recommend`."""
    run = run_config(config, method, shape, tokens)
    params = jax.jit(weights(model_of(config, method, shape, tokens)))(jax.random.key(0))
    ids = np.arange(config.catalog)
    catalog = Catalog(Vocabulary(ids), np.append(0, ids[::-1] + 1), 0)
    rec = Recommender(run, params, catalog, devices=jax.devices()[:1])
    encoding = "int8" if method == "compressed_int8" else "float32"
    counts = np.full(len(items), shape.history, np.int32)
    compress = jax.jit(functools.partial(states.compress, rec.model))
    state = state_rows.to_host(compress(rec.params, items, times, counts))
    columns = encode_state(state, encoding)
    if (state.pending != shape.window).any():
        raise ValueError(f"window of {state.pending[0]} events, {shape.window} expected")
    compiled = rec.compiled.query_states.lower(
        rec.params, decode_state(columns, encoding), None
    ).compile()
    flops = len(items) * cost.forward_flops(rec.config.model, rec.model.layout.request())
    row_bytes = state_rows.row_spec(rec.model, encoding, 0).row_bytes
    return Request(lambda: rec.queries(columns, encoding)[0], compiled, flops, row_bytes)


def training(
    config: GridConfig, method: str, shape: Shape, tokens: int
) -> tuple[Callable[[], object], jax.stages.Compiled]:
    """(function that takes one more step, its program): what `train.py` runs, on one device."""
    model = model_of(config, method, shape, tokens)
    run = run_config(config, method, shape, tokens)
    mesh = mesh_lib.make_mesh(MeshConfig(data=1), jax.devices()[:1])
    loss = model.window_loss if isinstance(model, MeanPooled) else model.loss
    training_step = step_lib.assemble(run, Task(weights(model), loss, model.negatives), mesh)
    state = jax.jit(training_step.new)()
    layout = model.layout
    if method == "mean_pooled":
        layout = SegmentLayout.full(shape.history)
    batch = random_batch(layout, config.train_batch, config.catalog)
    batch = jax.device_put(batch, mesh_lib.batch_sharding(mesh))
    compiled = training_step.step.lower(state, batch, None).compile()
    state_of_run = [state]

    def step() -> object:
        state_of_run[0], metrics = compiled(state_of_run[0], batch, None)
        return state_of_run[0].params, metrics

    return step, compiled
