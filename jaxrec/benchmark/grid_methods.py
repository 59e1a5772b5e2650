"""The methods that the benchmark compares: how each answers a request and takes a training step.

A request is the query vector of each user's next event. All methods get their input as NumPy
arrays on the host, so its transfer is counted for all of them. Ranking the catalog is the same
for all and is left out.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.serving import last_query, random_events
from benchmarks.step import random_batch
from jaxrec.benchmark.grid_config import WITH_TOKENS, GridConfig
from jaxrec.config import Config, MeshConfig
from jaxrec.data.vocabulary import Vocabulary
from jaxrec.layout import SegmentLayout
from jaxrec.model import cost, recommender, states
from jaxrec.model.network import Network
from jaxrec.model.recommender import Model
from jaxrec.runtime import mesh as mesh_lib
from jaxrec.serving import Catalog, Recommender, rows
from jaxrec.state_store.forms import decode_state, encode_state
from jaxrec.training import step as step_lib
from jaxrec.training.task import Task
from jaxrec.types import Batch, Params

EVENT_BYTES = 8  # item and time, int32


class Shape(NamedTuple):
    """history: events; segments: equal parts of it, the recent window the last."""

    history: int
    segments: int

    @property
    def window(self) -> int:
        return self.history // self.segments


class Request(NamedTuple):
    """call: answers one batch; compiled: XLA's program of it; flops: analytic, of the batch."""

    call: Callable[[], Any]
    compiled: Any
    flops: int
    state_bytes: int


@dataclasses.dataclass(frozen=True)
class MeanPooled(Model):
    """Past segments as the mean of their item vectors, one position each, then recent events.

    The network's layout is one plain segment of `segments + window` positions. Histories fill
    the layout; items that are padding do not count in a mean.
    """

    segments: int = 0
    size: int = 0

    def means(self, params: Params, items: Any) -> jax.Array:
        """[B, segments x size] items -> [B, segments, D]: what a state would keep."""
        apply: Any = self.network.apply
        vectors = apply({"params": params}, items, method=_vectors)
        return mean_of_segments(vectors, items, self.size)

    def outputs(self, params: Params, means: Any, items: Any, times: Any, **kwargs: Any) -> Any:
        """[B, window, D] outputs over recent items [B, window]; times: [B, positions + 1]."""
        rng = kwargs.pop("rng", None)
        layout = self.layout

        def run(network: Network, means: Any, items: Any) -> jax.Array:
            x = jnp.concatenate([means, _vectors(network, items)], axis=1)
            lengths = jnp.full((x.shape[0], 1), x.shape[1], jnp.int32)
            y, _ = network.compressor(x, layout, lengths, times, **kwargs)
            return y.astype(jnp.float32)[:, self.segments :]

        apply: Any = self.network.apply
        rngs = None if rng is None else {"dropout": rng}
        return apply({"params": params}, means, items, rngs=rngs, method=run)

    def query(self, params: Params, means: Any, items: Any, times: Any) -> jax.Array:
        return self.queries(params, self.outputs(params, means, items, times)[:, -1])

    def loss(self, params: Params, batch: Batch, **kwargs: Any) -> Any:
        """`Model.loss` over the recent window; means take part in the gradient."""
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


def _vectors(network: Network, items: Any) -> jax.Array:
    """What the network makes of item ids before the encoder."""
    x = network.lookup(items)
    if network.config.item_width not in (0, network.config.width):
        x = network.item_projection(x)
    return x


def mean_of_segments(vectors: Any, items: Any, size: int) -> jax.Array:
    """[B, S x size, D] and their items -> [B, S, D], padding left out; zeros for none."""
    users, events, width = vectors.shape
    there = (items > 0).astype(vectors.dtype).reshape(users, -1, size, 1)
    parts = vectors.reshape(users, events // size, size, width) * there
    return parts.sum(2) / jnp.maximum(there.sum(2), 1)


def run_config(config: GridConfig, method: str, shape: Shape, tokens: int) -> Config:
    """The configuration of a training or serving run with this method's sizes."""
    made = Config()
    state = "embedding" if method == "compressed_embedding" else "kv"
    made.model = dataclasses.replace(config.model, state=state)
    made.loss = config.loss
    made.layout.segment_size, made.layout.tokens = shape.window, tokens or 1
    made.layout.max_segments, made.layout.recent_min = shape.segments - 1, 1
    made.train.batch_size = config.train_batch
    return made


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


def weights(model: Model) -> Callable[[Any], Params]:
    """An `init` with the shapes of `Model.init` that compiles at once: waves instead of noise.

    Time does not depend on the values, and compiling the initialisers of every method would
    take longer than everything that is measured.
    """
    leaves, tree = jax.tree.flatten(jax.eval_shape(model.init, jax.random.key(0)))

    def init(_: Any) -> Params:
        filled = [
            (0.05 * jnp.sin(jnp.arange(leaf.size) * 0.7 + number)).reshape(leaf.shape)
            for number, leaf in enumerate(leaves)
        ]
        typed = [w.astype(leaf.dtype) for w, leaf in zip(filled, leaves, strict=True)]
        return jax.tree.unflatten(tree, typed)

    return init


def request(config: GridConfig, method: str, shape: Shape, tokens: int, batch: int) -> Request:
    """A request of `batch` users whose histories fill the shape, compiled."""
    lines = random_events(batch, shape.history, config.catalog)
    items, times = (np.stack(column) for column in zip(*lines, strict=True))
    if method in WITH_TOKENS:
        return _stored(config, method, shape, tokens, items, times)
    model = model_of(config, method, shape, tokens)
    params = jax.jit(weights(model))(jax.random.key(0))
    function: Any = functools.partial(last_query, model, batch)
    inputs: tuple[Any, ...] = (items, times)
    kept = shape.history * EVENT_BYTES
    if isinstance(model, MeanPooled):
        past = model.segments * model.size
        ends = np.arange(1, model.segments + 1) * model.size - 1
        clock = np.concatenate([times[:, ends], times[:, past:], times[:, -1:]], axis=1)
        means = np.asarray(jax.jit(model.means)(params, items[:, :past]))
        function, inputs = model.query, (means, items[:, past:], clock)
        kept = means[0].nbytes + shape.window * EVENT_BYTES
    elif method == "recent":
        inputs = (items[:, -shape.window :], times[:, -shape.window :])
        kept = shape.window * EVENT_BYTES
    served = jax.jit(function)
    compiled = served.lower(params, *inputs).compile()
    flops = batch * cost.forward_flops(model.network.config, model.layout)
    return Request(functools.partial(served, params, *inputs), compiled, flops, kept)


def _stored(
    config: GridConfig, method: str, shape: Shape, tokens: int, items: Any, times: Any
) -> Request:
    """From rows as the store holds them, by what `Recommender.recommend` asks."""
    run = run_config(config, method, shape, tokens)
    params = jax.jit(weights(model_of(config, method, shape, tokens)))(jax.random.key(0))
    numbers = np.arange(config.catalog)
    catalog = Catalog(Vocabulary(numbers), np.append(0, numbers[::-1] + 1), 0)
    rec = Recommender(run, params, catalog, devices=jax.devices()[:1])
    form = "int8" if method == "compressed_int8" else "float32"
    counts = np.full(len(items), shape.history, np.int32)
    compress = jax.jit(functools.partial(states.compress, rec.model))
    state = rows.to_host(compress(rec.params, items, times, counts))
    columns = encode_state(state, form)
    if (state.pending != shape.window).any():
        raise ValueError(f"window of {state.pending[0]} events, {shape.window} expected")
    compiled = rec._query.lower(rec.params, decode_state(columns, form), None).compile()
    flops = len(items) * cost.forward_flops(rec.config.model, rec.model.layout.request())
    size = rows.row_spec(rec.model, form, 0).row_bytes
    return Request(lambda: rec.queries(columns, form)[0], compiled, flops, size)


def training(
    config: GridConfig, method: str, shape: Shape, tokens: int
) -> tuple[Callable[[], Any], Any]:
    """(one more training step, XLA's program of it): what `train.py` runs, on one device."""
    model = model_of(config, method, shape, tokens)
    run = run_config(config, method, shape, tokens)
    mesh = mesh_lib.make_mesh(MeshConfig(data=1), jax.devices()[:1])
    parts = step_lib.assemble(run, Task(weights(model), model.loss, model.negatives), mesh)
    state = jax.jit(parts.new)()
    layout = model.layout
    if method == "mean_pooled":
        layout = SegmentLayout.full(shape.history)
    batch = random_batch(layout, config.train_batch, config.catalog)
    batch = jax.device_put(batch, mesh_lib.batch_sharding(mesh))
    compiled = parts.step.lower(state, batch, None).compile()
    holder = [state]

    def step() -> Any:
        holder[0], metrics = compiled(holder[0], batch, None)
        return holder[0].params, metrics

    return step, compiled
