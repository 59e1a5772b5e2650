"""The methods that the benchmark compares: a request and a training step of each.

A request computes the query vector of each user's next event. All methods start from NumPy
arrays on the host, so the transfer of their input counts. Ranking the catalog is the same for
all methods and is left out.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxrec.benchmark.grid_config import WITH_TOKENS, GridConfig
from jaxrec.benchmark.workload import last_query, random_batch, random_events, stacked
from jaxrec.config import Config, MeshConfig
from jaxrec.data.vocabulary import Vocabulary
from jaxrec.layout import SegmentLayout
from jaxrec.model import cost, recommender, states
from jaxrec.model.network import Network
from jaxrec.model.recommender import Model
from jaxrec.runtime import mesh as mesh_lib
from jaxrec.serving import Catalog, Recommender, state_rows
from jaxrec.state_store.encodings import decode_state, encode_state
from jaxrec.training import step as step_lib
from jaxrec.training.task import Task
from jaxrec.types import Array, Batch, Params

EVENT_BYTES = 8  # item and time, int32


class Shape(NamedTuple):
    """history: events; segments: equal ones that it is cut into, the last is the recent window."""

    history: int
    segments: int

    @property
    def window(self) -> int:
        return self.history // self.segments


class Request(NamedTuple):
    """call: answers one batch; compiled: its program; flops: counted from the layout, per batch;
    state_bytes: kept per user."""

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
        """Means [B, segments, D] of items [B, segments x size]: what a state would keep."""
        apply: Any = self.network.apply
        vectors = apply({"params": params}, items, method=_vectors)
        return mean_of_segments(vectors, items, self.size)

    def outputs(
        self, params: Params, means: Array, items: Array, times: jax.Array, **kwargs: Any
    ) -> jax.Array:
        """Outputs [B, window, D] over recent items [B, window]; times: [B, positions + 1]."""
        rng = kwargs.pop("rng", None)
        layout = self.layout

        def run(network: Network, means: Array, items: Array) -> jax.Array:
            x = jnp.concatenate([means, _vectors(network, items)], axis=1)
            lengths = jnp.full((x.shape[0], 1), x.shape[1], jnp.int32)
            y, _ = network.compressor(x, layout, lengths, times, **kwargs)
            return y.astype(jnp.float32)[:, self.segments :]

        apply: Any = self.network.apply
        rngs = None if rng is None else {"dropout": rng}
        return apply({"params": params}, means, items, rngs=rngs, method=run)

    def query(self, params: Params, means: Array, items: Array, times: jax.Array) -> jax.Array:
        return self.queries(params, self.outputs(params, means, items, times)[:, -1])

    def loss(self, params: Params, batch: Batch, **kwargs: Any) -> Any:
        """`Model.loss` over the recent window; gradients also flow through the means."""
        rng = kwargs.get("rng")
        dropout, sample = (None, None) if rng is None else jax.random.split(rng)
        past = self.segments * self.size
        last = np.arange(1, self.segments + 1) * self.size - 1
        times = jnp.concatenate([batch.times[:, last], batch.times[:, past:]], axis=1)
        means = self.means(params, batch.items[:, :past])
        recent = batch.items[:, past:]
        train = kwargs.get("train", False)
        y = self.outputs(params, means, recent[:, :-1], times, train=train, rng=dropout)
        targets = recent[:, 1:].reshape(-1)
        weights = jnp.where(targets == 0, 0.0, batch.weights[:, past + 1 :].reshape(-1))
        asking = (np.arange(y.shape[1]), np.arange(y.shape[1]) + 1)
        total, weight = self._compare(
            params, y, batch, asking, targets, weights, sample, kwargs.get("item_counts"), None
        )
        return total, weight, {"targets": weight}


def _vectors(network: Network, items: Array) -> jax.Array:
    """Input vectors of item ids, as the encoder gets them."""
    x = network.lookup(items)
    if network.config.item_width not in (0, network.config.width):
        x = network.item_projection(x)
    return x


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
        return MeanPooled(built.network, past, shape.window)
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
    query: Callable[..., jax.Array] = functools.partial(last_query, model, batch)
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
    compiled = rec.compiled.query.lower(rec.params, decode_state(columns, encoding), None).compile()
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
    training_step = step_lib.assemble(run, Task(weights(model), model.loss, model.negatives), mesh)
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
