"""The compiled functions that serving calls, and the arrays they need on the devices."""

import collections
import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple, ParamSpec, TypeVar

import jax
import numpy as np

from jaxrec import ranking
from jaxrec.config import Config, MeshConfig, ModelConfig, digest
from jaxrec.layout import SegmentLayout
from jaxrec.model import recommender, states
from jaxrec.model.recommender import Model
from jaxrec.ranking import ItemIndex, TopK
from jaxrec.runtime import leaves, workdir
from jaxrec.runtime import mesh as mesh_lib
from jaxrec.serving import buckets
from jaxrec.serving.buckets import SHAPES, Shapes
from jaxrec.state_store.encodings import decode_state
from jaxrec.state_store.row_format import Columns
from jaxrec.types import Array, HistoryItems, ItemVectors, Params, Queries, UserState

P = ParamSpec("P")
T = TypeVar("T")


class UserQueries(NamedTuple):
    """Queries [B, ...] of B users; history: their history items, None if scores ignore them."""

    queries: Queries
    history: HistoryItems | None


def build_model(config: Config, num_items: int) -> Model:
    """The model of a run's configuration over a catalog of `num_items` items."""
    layout = SegmentLayout.from_config(config.layout)
    return recommender.build(config.model, config.loss, layout, num_items)


def model_version(config: Config, params: Params) -> str:
    """Digest of everything that scores depend on: the parameters and the model's settings."""
    defaults = workdir.flatten(ModelConfig())
    return digest(
        {name: leaves.digest(leaf) for name, leaf in leaves.flatten(params).items()},
        # defaults are left out: a key that a later version adds does not change the digest
        {k: v for k, v in workdir.flatten(config.model).items() if v != defaults.get(k)},
        config.loss.similarity,
    )


class CompiledModel:
    """`extend`, `queries`, `top_k` and `top_k_of_candidates` for batches of a few sizes.

    params: on every device. items: the index of the catalog. popularity: an index whose scores
    are training counts. With several devices the rows of both are split over them. shapes: the
    sizes of batches. traces: how often each function was compiled for a new shape.
    """

    def __init__(
        self,
        config: Config,
        params: Params,
        counts: np.ndarray,
        devices: Sequence[jax.Device],
        *,
        shapes: Shapes = SHAPES,
    ) -> None:
        """counts: int64 [V + 1] training events per item, entry 0 is padding.

        Raises ValueError when the configuration has no user states (layout.mode is not
        `compressed`).
        """
        self.config, self.shapes = config, shapes
        self.model = model = build_model(config, len(counts) - 1)
        states.empty(model, 1)  # refuses layouts without tokens
        mesh = None
        if len(devices) > 1:
            mesh = mesh_lib.make_mesh(MeshConfig(data=1, model=len(devices)), devices)
        self.params: Params = jax.device_put(
            params, devices[0] if mesh is None else mesh_lib.replicated(mesh)
        )
        items: ItemVectors = jax.device_get(model.item_vectors(params))
        training_counts = ItemVectors(np.asarray(counts, np.float32)[:, None])
        self.items = ItemIndex.place(items, devices[0], mesh)
        self.popularity = ItemIndex.place(training_counts, devices[0], mesh)
        self.traces: collections.Counter[str] = collections.Counter()
        # (params, state, items [B, M], times [B, M], counts [B]) -> state
        self.extend = self._jit("extend", functools.partial(states.extend, model))
        # (params, state, now int32 [B] or None) -> UserQueries
        self.query_states = self._jit("query", self._user_queries)
        self._top_k = self._jit("top_k", self._top_k_of_catalog, ("k",))
        self._top_k_of_candidates = self._jit(
            "top_k_of_candidates", ranking.top_k_of_candidates, ("k",)
        )

    def queries(
        self, columns: Columns, encoding: str, now: np.ndarray | None = None
    ) -> UserQueries:
        """Queries and history items of stored rows [B, ...]; B is rounded up to a bucket.

        columns: rows of the store, `encoding` of their vectors. now: int32 [B] model times.
        Entries beyond the last user are padding.
        """
        count = len(columns["events"])
        size = buckets.size_of(count, self.shapes.users)
        state = decode_state({n: buckets.fill(c, size) for n, c in columns.items()}, encoding)
        times = None
        if self.config.model.request_time:
            last = np.maximum(columns["pending"] - 1, 0)
            times = columns["times"][np.arange(count), last] if now is None else now
            times = buckets.fill(np.asarray(times), size)
        queries: UserQueries = self.query_states(self.params, state, times)
        return queries

    def popularity_queries(self, count: int) -> UserQueries:
        """Queries to `popularity` for `count` users without a state; rounded up to a bucket."""
        size = buckets.size_of(count, self.shapes.users)
        ones = np.ones((size, 1), np.float32)
        return UserQueries(Queries(ones), None)

    def top_k(
        self, queries: UserQueries, index: ItemIndex, exclude: Array | None, *, k: int
    ) -> TopK:
        """The k best items of an index: scores and dense ids [B, k].

        exclude: dense ids int32 [B, X], 0 is none.
        """
        lists: TopK = self._top_k(queries, index, exclude, k=k)
        return lists

    def top_k_of_candidates(
        self, queries: UserQueries, index: ItemIndex, candidates: Array, *, k: int
    ) -> TopK:
        """The k best of each user's candidates: scores and dense ids [B, k].

        candidates: dense ids int32 [B, X], 0 is none.
        """
        vectors, history = queries
        lists: TopK = self._top_k_of_candidates(vectors, index, candidates, k=k, history=history)
        return lists

    def _user_queries(self, params: Params, state: UserState, now: Array | None) -> UserQueries:
        queries = states.query(self.model, params, state, now)
        return UserQueries(queries, states.history_items(self.model, state))

    def _top_k_of_catalog(
        self, queries: UserQueries, index: ItemIndex, exclude: Array | None, *, k: int
    ) -> TopK:
        vectors, history = queries
        chunk = self.config.eval.chunk
        return ranking.top_k(vectors, index, k, exclude=exclude, history=history, chunk=chunk)

    def _jit(
        self, name: str, function: Callable[P, T], static: tuple[str, ...] = ()
    ) -> jax.stages.Wrapped:
        """`jax.jit` that counts traces under `name`; static: names of static arguments."""

        @functools.wraps(function)
        def traced(*args: P.args, **kwargs: P.kwargs) -> T:
            self.traces[name] += 1
            return function(*args, **kwargs)

        return jax.jit(traced, static_argnames=static)
