"""Recommendations from stored user states: raw ids in, raw ids out.

    rec = Recommender.load("runs/quickstart")
    store = rec.create_store("states")
    rec.append(store, user_ids, item_ids, timestamps)
    items, scores = rec.recommend(store, user_ids, k=10)

Needs jax, flax, orbax, tensorstore and numpy; no data library. docs/serving.md says what
happens to unordered, late, repeated and unknown input.
"""

import collections
import functools
import os
import pathlib
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxrec.config import Config, ModelConfig, digest
from jaxrec.data.catalog import Catalog
from jaxrec.layout import SegmentLayout
from jaxrec.model import recommender, states
from jaxrec.ranking import retrieval
from jaxrec.runtime import checkpoint, leaves, workdir
from jaxrec.serving import buckets, ranking, requests, rows
from jaxrec.serving.rows import Events
from jaxrec.state_store.forms import FORMS, decode_state, encode_state
from jaxrec.state_store.keys import id_list
from jaxrec.state_store.metadata import Binding
from jaxrec.state_store.rows import Columns
from jaxrec.state_store.store import Url, UserStateStore
from jaxrec.types import PAD, Params, UserId

BATCH = buckets.USERS[-1]

# (values, how many) -> the same values, showing how far it is
Track = Callable[[Iterable[Any], int], Iterable[Any]]


class Appended(NamedTuple):
    """What `append` did: events now in states, users they belong to, and events left out.

    unknown_items: events of items that the model does not know; late: events older than what
    their user's state has compressed already; there_before: users whose states had these very
    events already, left as they are (`once`).
    """

    events: int
    users: int
    unknown_items: int
    late: int
    there_before: int = 0


class Recommender:
    """A trained model that serves: holds no user data, works on any number of stores.

    Methods may be called from several threads. `traces` counts how often each function was
    compiled for a new shape; it stops growing once every bucket of sizes was met.
    """

    def __init__(
        self,
        config: Config,
        params: Params,
        catalog: Catalog,
        *,
        step: int = 0,
        devices: Sequence[jax.Device] | None = None,
    ) -> None:
        """config, params, catalog: of one run; `load` reads them from its folder.

        devices: where the model runs (default: all local devices). With several of them the
        rows of the item table are split over them. Raises ValueError when the configuration
        has no user states (layout.mode is not `compressed`).
        """
        layout = SegmentLayout.from_config(config.layout)
        self.config, self.catalog, self.step = config, catalog, step
        self.model = recommender.build(config.model, config.loss, layout, catalog.num_items)
        states.empty(self.model, 1)  # refuses layouts without tokens
        self.devices = tuple(jax.local_devices() if devices is None else devices)
        mesh = ranking.make_mesh(self.devices)
        usual = workdir.flatten(ModelConfig())
        self.version = digest(
            {name: leaves.digest(leaf) for name, leaf in leaves.flatten(params).items()},
            # a key that a later version adds, at its default, leaves the model the same
            {k: v for k, v in workdir.flatten(config.model).items() if v != usual.get(k)},
            config.loss.similarity,
        )
        self.params = ranking.on(self.devices, mesh, params)
        vectors = np.asarray(self.model.item_table(params), np.float32)
        popular = np.asarray(catalog.counts, np.float32)[:, None]
        self._items = ranking.place(vectors, self.devices, mesh)
        self._popularity = ranking.place(popular, self.devices, mesh)
        self.traces: collections.Counter[str] = collections.Counter()
        self._extend = self._jit("extend", functools.partial(states.extend, self.model))
        self._query = self._jit("query", self._ask)
        self._best = self._jit("top_k", self._top, ("k",))
        self._best_of = self._jit("top_k_of", self._top_of, ("k",))

    @classmethod
    def load(
        cls,
        folder: str | os.PathLike[str],
        *,
        which: str = "best",
        devices: Sequence[jax.Device] | None = None,
    ) -> "Recommender":
        """The model of a training run (or of a snapshot, see `jaxrec.serving.snapshot`).

        which: best, latest or a step number. Raises WorkdirError, CheckpointError or
        ConfigError naming the file and what to do.
        """
        path = pathlib.Path(folder)
        config = workdir.load_config(path)
        catalog = Catalog.load(path)
        layout = SegmentLayout.from_config(config.layout)
        model = recommender.build(config.model, config.loss, layout, catalog.num_items)
        like = jax.eval_shape(model.init, jax.random.key(0))
        step, params = checkpoint.load_params(path / workdir.CHECKPOINTS, like, which)
        return cls(config, params, catalog, step=step, devices=devices)

    # -- stores ------------------------------------------------------------------------------

    def binding(self, form: str) -> Binding:
        """What a store of this model is bound to."""
        return Binding(
            params=self.version,
            layout=digest(self.model.layout),
            vocabulary=self.catalog.digest,
            form=form,
        )

    def create_store(
        self,
        url: Url,
        *,
        form: str | None = None,
        keep_seen: int | None = None,
        num_shards: int | None = None,
        shards: Iterable[int] | None = None,
    ) -> UserStateStore:
        """A new empty store at a path or TensorStore URL, open for writing.

        form: float32, bfloat16 or int8, how vectors are stored. keep_seen: newest distinct
        items that are remembered per user (4 bytes each), needed for `exclude_seen`. None takes
        these and num_shards from `config.serving`. shards: which ones to write (default: all).
        """
        usual = self.config.serving
        form = usual.encoding if form is None else form
        keep_seen = usual.keep_seen if keep_seen is None else keep_seen
        num_shards = usual.num_shards if num_shards is None else num_shards
        if form not in FORMS:
            raise ValueError(f"form={form!r}: allowed are {', '.join(FORMS)}")
        if keep_seen < 0:
            raise ValueError(f"keep_seen={keep_seen}: 0 (nothing) or a number of items is needed")
        spec = rows.row_spec(self.model, form, keep_seen)
        return UserStateStore.create(url, spec, self.binding(form), num_shards, shards=shards)

    def open_store(
        self, url: Url, *, mode: str = "w", shards: Iterable[int] | None = None
    ) -> UserStateStore:
        """A store of this model; mode `w` (append, build) or `r` (recommend only).

        shards: which ones to write (default: all); several processes may each hold some.
        Raises StoreError when the store belongs to another model, naming both.
        """
        found = UserStateStore.open(url, None, mode="r")
        form = found.metadata.binding.form
        spec = rows.row_spec(
            self.model, form if form in FORMS else FORMS[0], rows.seen_capacity(found.spec)
        )
        return UserStateStore.open(url, self.binding(form), spec=spec, mode=mode, shards=shards)

    # -- events ------------------------------------------------------------------------------

    def append(
        self,
        store: UserStateStore,
        user_ids: Any,
        item_ids: Any,
        timestamps: Any,
        *,
        once: bool = False,
        track: Track = lambda values, total: values,
    ) -> Appended:
        """Adds events to their users' states; durable when it returns.

        user_ids, item_ids: raw ids [N]; timestamps: [N] seconds since 1970 or datetime64.
        Rows may be in any order and name a user several times: each user's events are applied
        in time order, ties in the order given. New users are made. Events of unknown items and
        late events are left out and counted. once: the same call, with the same events, may be
        made again after a failure or a kill: what is in the states is not added twice (the
        store remembers the newest three such calls). track: shows progress over (batches, how
        many).
        Raises DataError, before anything is written, for wrong types, different lengths, NaN,
        null and impossible timestamps.
        """
        table = requests.check_events(user_ids, item_ids, timestamps)
        times = self.catalog.seconds(table.time, "append")
        items = self.catalog.vocabulary.encode(table.item)
        known = items > 0
        users, events = requests.by_user(table.user[known], items[known], times[known])
        self.catalog.check_users(users, "append")
        source = requests.digest(table, BATCH) if once else ""
        total = np.zeros(len(Appended._fields), np.int64)
        parts = self._parts(events)
        for number, part in track(enumerate(parts), len(parts)):
            names, lines = [users[i] for i in part], [events[i] for i in part]
            mark = (source, number) if once else None
            total += self.append_dense(store, names, lines, mark)
        unknown = Appended(0, 0, int((~known).sum()), 0)
        return Appended(*(total + unknown).tolist())

    def append_dense(
        self,
        store: UserStateStore,
        users: Sequence[UserId],
        events: Sequence[Events],
        mark: tuple[str, int] | None = None,
    ) -> Appended:
        """`append` of one part: distinct users with their events in time order, dense ids.

        mark: as in `UserStateStore.update`.
        """
        counts: dict[UserId, tuple[int, int]] = {}
        given = dict(zip(users, events, strict=True))
        tells_form = store.metadata.binding.form

        def update(asked: list[UserId], columns: Columns, found: np.ndarray) -> Columns:
            del found  # rows of new users are zero: an empty state
            new = [given[user] for user in asked]
            result, late = self._updated(columns, new, tells_form)
            for user, dropped, line in zip(asked, late.tolist(), new, strict=True):
                counts[user] = (len(line.items) - dropped, dropped)
            return result

        store.update(list(users), update, mark)
        added, late = (sum(pair[i] for pair in counts.values()) for i in range(2))
        return Appended(added, len(counts), 0, late, len(users) - len(counts))

    def _parts(self, events: Sequence[Events]) -> list[list[int]]:
        """Users by number of events, a batch at a time: batches are filled evenly."""
        order = np.argsort([len(line.items) for line in events], kind="stable").tolist()
        return [order[start : start + BATCH] for start in range(0, len(order), BATCH)]

    def _updated(
        self, columns: Columns, events: Sequence[Events], form: str
    ) -> tuple[Columns, np.ndarray]:
        """Rows with new events, and how many events of each were late."""
        layout = self.config.layout
        result = {name: np.array(column) for name, column in columns.items()}
        lines, late = rows.merge(columns, events)
        heavy = []
        for row, line in enumerate(lines):
            if rows.completes(line, layout.segment_size, layout.recent_min):
                heavy.append(row)
            else:
                rows.set_pending(result, row, line)
        if heavy:
            part = {name: column[heavy] for name, column in columns.items() if name != rows.SEEN}
            extended = self._extended(part, [lines[row] for row in heavy], form)
            for name, column in extended.items():
                result[name][heavy] = column
        if rows.SEEN in result:
            result[rows.SEEN] = rows.remember(columns[rows.SEEN], events)
        return result, late

    def _extended(self, columns: Columns, lines: Sequence[Events], form: str) -> Columns:
        """Rows whose not compressed events become `lines`, by the model."""
        layout = self.config.layout
        size = buckets.size_of(len(lines), buckets.USERS)
        state = decode_state({n: buckets.fill(c, size) for n, c in columns.items()}, form)
        # the pending events are the first of the lines
        state = state._replace(
            pending=np.zeros_like(state.pending), events=state.events - state.pending
        )
        lengths = buckets.fill(np.asarray([len(line.items) for line in lines], np.int32), size)
        start, longest = 0, int(lengths.max())
        while start < longest:
            left = min(longest - start, layout.recent + buckets.EVENTS[-1])
            width = layout.recent + buckets.size_of(left - layout.recent, buckets.EVENTS)
            items, times = (np.zeros((size, width), np.int32) for _ in range(2))
            for row, line in enumerate(lines):
                cut = slice(start, start + width)
                items[row, : len(line.items[cut])] = line.items[cut]
                times[row, : len(line.times[cut])] = line.times[cut]
            counts = np.clip(lengths - start, 0, width).astype(np.int32)
            state = self._extend(self.params, state, items, times, counts)
            start += width
        encoded = encode_state(rows.to_host(state), form)
        result = {name: np.array(column[: len(lines)]) for name, column in encoded.items()}
        rows.keep_codes(columns, result, layout.tokens)
        return result

    # -- requests ----------------------------------------------------------------------------

    def recommend(
        self,
        store: UserStateStore,
        user_ids: Any,
        k: int = 10,
        now: Any = None,
        exclude_seen: bool = False,
        exclude: Any = None,
        candidates: Any = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """The k best next items of each user: (raw item ids [B, k], scores float32 [B, k]).

        Best first. Users without a state get the most popular items, whose scores are training
        counts. Where fewer than k items may be given the rest of a line is no item (-1 or an
        empty text) with score -inf.
        now: time of the request, one value or [B], for models with `model.request_time`
            (default: the user's last event).
        exclude_seen: leave out the items that the store remembers of a user (`keep_seen`).
        exclude: raw item ids to leave out, one list for all users or a list per user.
        candidates: raw item ids to choose from, one list or a list per user (default: all).
        Raises DataError or ValueError naming the argument.
        """
        users = id_list(user_ids)
        self.catalog.check_users(users, "recommend")
        if isinstance(k, bool) or not isinstance(k, int | np.integer) or k < 1:
            raise ValueError(f"k={k!r}: a positive integer is needed")
        if exclude_seen and not rows.seen_capacity(store.spec):
            raise ValueError(
                "exclude_seen=True: this store does not remember what users have seen; create "
                "it with keep_seen=N (items per user), or pass exclude"
            )
        times = requests.check_now(now, len(users), self.catalog)
        unwanted = requests.check_items(exclude, len(users), "exclude", self.catalog)
        allowed = requests.check_items(candidates, len(users), "candidates", self.catalog)
        ids = np.full((len(users), k), PAD, np.int32)
        scores = np.full((len(users), k), -np.inf, np.float32)
        for start in range(0, len(users), BATCH):
            cut = slice(start, start + BATCH)
            columns, found = store.read(users[cut])
            ids[cut], scores[cut] = self._recommend(
                columns,
                found,
                k,
                store.metadata.binding.form,
                None if times is None else times[cut],
                exclude_seen,
                None if unwanted is None else unwanted[cut],
                None if allowed is None else allowed[cut],
            )
        return self.catalog.raw(ids), scores

    def _recommend(
        self,
        columns: Columns,
        found: np.ndarray,
        k: int,
        form: str,
        now: np.ndarray | None,
        exclude_seen: bool,
        exclude: Sequence[np.ndarray] | None,
        candidates: Sequence[np.ndarray] | None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """One batch: dense ids [B, k] and scores, known users by the model."""
        batch = len(found)
        unwanted = [np.zeros(0, np.int32)] * batch if exclude is None else list(exclude)
        if exclude_seen:
            seen = columns[rows.SEEN]
            unwanted = [np.concatenate(pair) for pair in zip(unwanted, seen, strict=True)]
        ids = np.zeros((batch, k), np.int32)
        scores = np.full((batch, k), -np.inf, np.float32)
        for known in (True, False):
            chosen = np.flatnonzero(found == known).tolist()
            if not chosen:
                continue
            size = buckets.size_of(len(chosen), buckets.USERS)
            x: Any
            if known:
                picked = {n: c[chosen] for n, c in columns.items() if n != rows.SEEN}
                x, own = self.queries(picked, form, None if now is None else now[chosen])
            else:
                x, own = np.ones((size, 1), np.float32), None
            some = [unwanted[i] for i in chosen]
            if candidates is None:
                width = min(buckets.size_of(k, buckets.LISTS), self.catalog.num_items)
                out = None
                if any(len(line) for line in some):
                    out = buckets.fill(buckets.rectangle(some, buckets.IDS), size)
                best, named = self._best(self._vectors(known), x, out, own, k=width)
            else:
                pairs = zip([candidates[i] for i in chosen], some, strict=True)
                lists = [np.setdiff1d(line, out) for line, out in pairs]
                given = buckets.fill(buckets.rectangle(lists, buckets.IDS), size)
                width = min(buckets.size_of(k, buckets.LISTS), given.shape[1])
                best, named = self._best_of(self._vectors(known), x, given, own, k=width)
            width = min(width, k)
            ids[chosen, :width] = np.asarray(named)[: len(chosen), :width]
            scores[chosen, :width] = np.asarray(best)[: len(chosen), :width]
        return ids, scores

    def queries(
        self, columns: Columns, form: str, now: np.ndarray | None = None
    ) -> tuple[jax.Array, retrieval.Own | None]:
        """Query vectors [B, D + K] and own items of stored rows; B is rounded up, and what
        stands behind the last row means nothing.

        now: int32 [B] model times.
        """
        count = len(columns["events"])
        size = buckets.size_of(count, buckets.USERS)
        state = decode_state({n: buckets.fill(c, size) for n, c in columns.items()}, form)
        times = None
        if self.config.model.request_time:
            last = np.maximum(columns["pending"] - 1, 0)
            times = columns["times"][np.arange(count), last] if now is None else now
            times = buckets.fill(np.asarray(times), size)
        return self._query(self.params, state, times)

    def _ask(self, params: Any, state: Any, now: Any) -> tuple[jax.Array, retrieval.Own | None]:
        return states.query(self.model, params, state, now), states.own_items(self.model, state)

    def _vectors(self, known: bool) -> jax.Array:
        return (self._items if known else self._popularity).vectors

    def _top(self, vectors: Any, x: Any, exclude: Any, own: Any, *, k: int) -> Any:
        table = self._items._replace(vectors=vectors)
        return ranking.top_k(x, table, k, exclude, own, chunk=self.config.eval.chunk)

    def _top_of(self, vectors: Any, x: Any, candidates: Any, own: Any, *, k: int) -> Any:
        return ranking.top_k_of(x, self._items._replace(vectors=vectors), candidates, k, own)

    def _jit(self, name: str, function: Callable[..., Any], static: tuple[str, ...] = ()) -> Any:
        @functools.wraps(function)
        def traced(*args: Any, **kwargs: Any) -> Any:
            self.traces[name] += 1
            return function(*args, **kwargs)

        return jax.jit(traced, static_argnames=static)
