"""Recommendations from stored user states: raw ids in, raw ids out.

    rec = Recommender.load("runs/quickstart")
    store = rec.create_store("states")
    rec.append(store, user_ids, item_ids, timestamps)
    items, scores = rec.recommend(store, user_ids, k=10)

Needs jax, flax, orbax, tensorstore and numpy; no data library. docs/serving.md says what
happens to unordered, late, repeated and unknown input.
"""

import collections
import os
import pathlib
from collections.abc import Iterable, Sequence
from typing import Self

import jax
import numpy as np
from numpy.typing import ArrayLike

from jaxrec.config import Config, digest
from jaxrec.data.catalog import Catalog
from jaxrec.model.recommender import Model
from jaxrec.runtime import checkpoint, workdir
from jaxrec.serving import raw_inputs, requests, state_rows, updates
from jaxrec.serving.buckets import BATCH, SHAPES, Shapes
from jaxrec.serving.compiled import CompiledModel, UserQueries, build_model, model_version
from jaxrec.serving.raw_inputs import ItemLists
from jaxrec.serving.requests import Answer, Request
from jaxrec.serving.state_rows import Events
from jaxrec.serving.tracking import Progress, no_progress
from jaxrec.serving.updates import AppendResult
from jaxrec.state_store.encodings import ENCODINGS
from jaxrec.state_store.keys import UserIds
from jaxrec.state_store.metadata import Binding
from jaxrec.state_store.places import Url
from jaxrec.state_store.row_format import Columns
from jaxrec.state_store.store import UserStateStore
from jaxrec.types import PAD, Params, UserId


class Recommender:
    """A trained model, ready to serve: holds no user data and works with any number of stores.

    Methods may be called from several threads. `traces` counts how often each function was
    compiled for a new shape; it stops growing once every bucket of sizes has been used.
    """

    def __init__(
        self,
        config: Config,
        params: Params,
        catalog: Catalog,
        *,
        step: int = 0,
        devices: Sequence[jax.Device] | None = None,
        shapes: Shapes = SHAPES,
    ) -> None:
        """config, params, catalog: of one run; `load` reads them from its folder.

        step: of the checkpoint. devices: where the model runs (default: all local devices);
        the rows of the item table are split over them. shapes: sizes of batches. Raises ValueError
        when the configuration has no user states (layout.mode is not `compressed`).
        """
        self.config, self.catalog, self.step = config, catalog, step
        self.devices = tuple(jax.local_devices() if devices is None else devices)
        self.compiled = CompiledModel(config, params, catalog.counts, self.devices, shapes=shapes)
        self.version = model_version(config, params)

    @property
    def model(self) -> Model:
        """The model's pure functions."""
        return self.compiled.model

    @property
    def params(self) -> Params:
        """The parameters, on every device."""
        return self.compiled.params

    @property
    def traces(self) -> collections.Counter[str]:
        """Function -> how often it was compiled."""
        return self.compiled.traces

    @classmethod
    def load(
        cls,
        folder: str | os.PathLike[str],
        *,
        which: str = "best",
        devices: Sequence[jax.Device] | None = None,
        shapes: Shapes = SHAPES,
    ) -> Self:
        """The model of a training run (or of a snapshot, see `jaxrec.serving.snapshot`).

        which: best, latest or a step number. shapes: sizes of batches. Raises WorkdirError,
        CheckpointError or ConfigError naming the file and what to do.
        """
        path = pathlib.Path(folder)
        config = workdir.load_config(path)
        catalog = Catalog.load(path)
        workdir.check_vocabulary(path, catalog.vocabulary.digest)
        model = build_model(config, catalog.num_items)
        like = jax.eval_shape(model.init, jax.random.key(0))
        step, params = checkpoint.load_params(path / workdir.CHECKPOINTS, like, which)
        return cls(config, params, catalog, step=step, devices=devices, shapes=shapes)

    # -- stores ------------------------------------------------------------------------------

    def binding(self, encoding: str) -> Binding:
        """What a store of this model is bound to; `encoding`: of its vectors."""
        return Binding(
            params=self.version,
            layout=digest(self.model.layout),
            vocabulary=self.catalog.digest,
            encoding=encoding,
        )

    def create_store(
        self,
        url: Url,
        *,
        encoding: str | None = None,
        keep_seen: int | None = None,
        num_shards: int | None = None,
        shards: Iterable[int] | None = None,
    ) -> UserStateStore:
        """A new empty store at a path or TensorStore URL, open for writing.

        encoding: float32, bfloat16 or int8, how vectors are stored. keep_seen: newest distinct
        items that are remembered per user (4 bytes each), needed for `exclude_seen`. None takes
        these and num_shards from `config.serving`. shards: which ones to write (default: all).
        Raises ValueError on a value that is not allowed, and StoreError when there is already a
        store.
        """
        defaults = self.config.serving
        encoding = defaults.encoding if encoding is None else encoding
        keep_seen = defaults.keep_seen if keep_seen is None else keep_seen
        num_shards = defaults.num_shards if num_shards is None else num_shards
        if encoding not in ENCODINGS:
            raise ValueError(f"encoding={encoding!r}: allowed are {', '.join(ENCODINGS)}")
        if keep_seen < 0:
            raise ValueError(f"keep_seen={keep_seen}: 0 (nothing) or a number of items is needed")
        spec = state_rows.row_spec(self.model, encoding, keep_seen)
        binding = self.binding(encoding)
        return UserStateStore.create(url, spec, binding, num_shards, shards=shards)

    def open_store(
        self, url: Url, *, mode: str = "w", shards: Iterable[int] | None = None
    ) -> UserStateStore:
        """A store of this model; mode `w` (append, build) or `r` (recommend only).

        shards: which ones to write (default: all); several processes may each hold some.
        Raises StoreError when the store belongs to another model, naming both.
        """
        existing = UserStateStore.open(url, None, mode="r")
        encoding = existing.metadata.binding.encoding
        spec = state_rows.row_spec(
            self.model,
            # rows of an unknown encoding do not fit any spec: the second `open` refuses them
            encoding if encoding in ENCODINGS else ENCODINGS[0],
            state_rows.seen_capacity(existing.spec),
        )
        return UserStateStore.open(url, self.binding(encoding), spec=spec, mode=mode, shards=shards)

    # -- events ------------------------------------------------------------------------------

    def append(
        self,
        store: UserStateStore,
        user_ids: ArrayLike,
        item_ids: ArrayLike,
        timestamps: ArrayLike,
        *,
        idempotent: bool = False,
        progress: Progress = no_progress,
    ) -> AppendResult:
        """Adds events to their users' states; durable when it returns.

        user_ids, item_ids: raw ids [N]; timestamps: [N] seconds since 1970 or datetime64.
        Rows may be in any order and name a user several times: each user's events are applied
        in time order, ties in the order given. New users are added. Events of unknown items and
        late events are left out and counted.

        idempotent: the same call, with the same events, may be repeated after a failure or a
        kill: nothing is added twice (the store remembers the newest three such calls).
        progress: over batches of users.

        Raises DataError, before anything is written, for wrong types, different lengths, NaN,
        null and impossible timestamps.
        """
        users, events, unknown_items, table = raw_inputs.new_events(
            user_ids, item_ids, timestamps, self.catalog
        )
        source = raw_inputs.digest(table, BATCH) if idempotent else ""
        total = np.zeros(len(AppendResult._fields), np.int64)
        # sorted by number of events, so that the users of a batch need about the same work
        order = np.argsort(
            [len(user_events.items) for user_events in events], kind="stable"
        ).tolist()
        batches = [order[start : start + BATCH] for start in range(0, len(order), BATCH)]
        for number, batch in progress(enumerate(batches), len(batches)):
            total += self.append_dense(
                store,
                [users[i] for i in batch],
                [events[i] for i in batch],
                idempotency_key=(source, number) if idempotent else None,
            )
        appended = AppendResult(*total.tolist())
        return appended._replace(unknown_items=unknown_items)

    def append_dense(
        self,
        store: UserStateStore,
        users: Sequence[UserId],
        events: Sequence[Events],
        *,
        idempotency_key: tuple[str, int] | None = None,
    ) -> AppendResult:
        """`append` of one batch: distinct users with their events in time order, dense ids.

        idempotency_key: as in `UserStateStore.update`.
        """
        return updates.append_events(
            self.compiled, store, users, events, idempotency_key=idempotency_key
        )

    # -- requests ----------------------------------------------------------------------------

    def recommend(
        self,
        store: UserStateStore,
        user_ids: UserIds,
        k: int = 10,
        *,
        now: ArrayLike | None = None,
        exclude_seen: bool = False,
        exclude: ItemLists | None = None,
        candidates: ItemLists | None = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """The k best next items of each user: (raw item ids [B, k], scores float32 [B, k]).

        Best first. Users without a state get the most popular items, whose scores are training
        counts. Where fewer than k items are left, the rest of a list is no item (-1 or an
        empty text) with score -inf.

        now: time of the request, one value or [B], for models with `model.request_time`
            (default: the user's last event).
        exclude_seen: leave out the items that the store remembers of a user (`keep_seen`).
        exclude: raw item ids to leave out, one list for all users or a list per user.
        candidates: raw item ids to choose from, one list or a list per user (default: all).

        Raises DataError or ValueError naming the argument.
        """
        users, request = requests.make_request(
            self.catalog,
            user_ids,
            k,
            now=now,
            exclude_seen=exclude_seen,
            exclude=exclude,
            candidates=candidates,
        )
        answer = self.answer(store, users, request)
        return answer.items, answer.scores

    def answer(self, store: UserStateStore, users: Sequence[UserId], request: Request) -> Answer:
        """The answer to a request of `requests.make_request`. Raises ValueError and StoreError."""
        state_rows.check_seen(store.spec, request.exclude_seen)
        ids = np.full((len(users), request.k), PAD, np.int32)
        scores = np.full((len(users), request.k), -np.inf, np.float32)
        known = np.zeros(len(users), bool)
        most = self.compiled.shapes.users[-1]
        for start in range(0, len(users), most):
            batch = range(start, min(start + most, len(users)))
            columns, known[batch] = store.read([users[i] for i in batch])
            batch_request = request.of(batch)
            if request.exclude_seen:
                batch_request = batch_request.without(columns[state_rows.SEEN])
            encoding = store.metadata.binding.encoding
            ids[batch], scores[batch] = requests.answer(
                self.compiled, columns, known[batch], batch_request, encoding
            )
        return Answer(self.catalog.raw(ids), scores, known)

    def queries(
        self, columns: Columns, encoding: str, now: np.ndarray | None = None
    ) -> UserQueries:
        """The queries of stored rows, as `CompiledModel.queries`."""
        return self.compiled.queries(columns, encoding, now)
