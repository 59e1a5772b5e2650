"""States of all users from prepared histories, and the check that they are right."""

import functools
from collections.abc import Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxrec.data.prepared import Prepared
from jaxrec.errors import DataError
from jaxrec.layout import SegmentLayout
from jaxrec.model.recommender import Model
from jaxrec.ranking import retrieval
from jaxrec.serving.rows import SEEN, Events
from jaxrec.serving.service import BATCH, Recommender, Track
from jaxrec.state_store.rows import Columns
from jaxrec.state_store.store import UserStateStore
from jaxrec.types import Params

# Largest difference of scores, relative to their range, that `verify` accepts by stored form.
# float32 rounds; the others lose bits of K and V (docs/serving.md has measured values).
BOUNDS = {"float32": 1e-5, "bfloat16": 2e-2, "int8": 5e-2}
BFLOAT16_MODEL = 5e-2  # of a model that computes in bfloat16
CHECKED = 16  # users of one masked forward

Queries = tuple[jax.Array, retrieval.Own | None]


class Built(NamedTuple):
    """users: states written; there_before: users that had one and were left as they are."""

    users: int
    there_before: int


class Verified(NamedTuple):
    """checked: users recomputed; changed: rows with other events than the prepared history
    (appended since), not checked; missing: users without a row, not checked.

    difference: largest |stored - recomputed| score, relative to the user's range of scores;
    bound: what is accepted; user: raw id of the worst one.
    """

    checked: int
    changed: int
    missing: int
    difference: float
    bound: float
    user: Any

    @property
    def passed(self) -> bool:
        """Whether users were checked and every one is within the bound (NaN is not)."""
        return self.checked > 0 and self.difference <= self.bound


def everything(values: Iterable[Any], total: int) -> Iterable[Any]:
    """A `Track` that shows nothing."""
    del total
    return values


def build_states(
    rec: Recommender, store: UserStateStore, prepared: Prepared, track: Track = everything
) -> Built:
    """Compresses the history of every user that the store does not have.

    Every batch is durable when the next one starts, so the same call goes on where a killed
    one stopped. Only users of shards that the store holds for writing are made: several
    processes share the work by shards. track: shows progress over (batches, how many).
    Raises DataError when the prepared data is not what the model was trained on.
    """
    check_data(rec, prepared)
    users = prepared.users.tolist()
    mine = np.flatnonzero(store.owns(users))
    order = mine[np.argsort(prepared.lengths[mine], kind="stable")]  # full batches cost least
    batches = [order[start : start + BATCH] for start in range(0, len(order), BATCH)]
    written = 0
    for batch in track(batches, len(batches)):
        _, found = store.read([users[user] for user in batch])
        todo = batch[~found]
        if len(todo):
            write_histories(rec, store, prepared, todo)
        written += len(todo)
    return Built(written, len(order) - written)


def write_histories(
    rec: Recommender, store: UserStateStore, prepared: Prepared, users: np.ndarray
) -> None:
    """Writes the states of users without one; users: numbers [B] in the prepared data."""
    records = prepared.source.__getitems__(users.tolist())
    names = [user.item() for user in prepared.users[users]]
    rec.append_dense(store, names, [Events(record.items, record.times) for record in records])


def check_data(rec: Recommender, prepared: Prepared) -> None:
    """Raises DataError unless items and times of the prepared data are the model's."""
    ids, known = prepared.vocabulary.ids, rec.catalog.vocabulary.ids
    if not np.array_equal(ids, known) or prepared.time_origin != rec.catalog.time_origin:
        raise DataError(
            f"{prepared.folder}: {len(ids)} items, times from {prepared.time_origin}: the model "
            f"was trained on other data ({len(known)} items, times from "
            f"{rec.catalog.time_origin}). Set --cache-dir to the data of its run"
        )


def verify(
    rec: Recommender,
    store: UserStateStore,
    prepared: Prepared,
    sample: int = 200,
    seed: int = 0,
    track: Track = everything,
) -> Verified:
    """Compares a sample of stored states with one masked forward over the whole histories.

    sample: users to look at, at least 1. Raises ValueError, and DataError when the prepared
    data is not what the model was trained on.
    """
    if sample < 1:
        raise ValueError(f"sample={sample}: at least 1 user is needed")
    check_data(rec, prepared)
    form = store.metadata.binding.form
    bound = BOUNDS[form]
    if rec.config.model.dtype != "float32":
        bound = max(bound, BFLOAT16_MODEL)
    order = np.random.default_rng(seed).permutation(prepared.num_users)[:sample]
    order = order[np.argsort(prepared.lengths[order], kind="stable")]
    batches = [order[start : start + CHECKED] for start in range(0, len(order), CHECKED)]
    masked = MaskedForward(rec)
    compare = Comparison(rec)
    changed = missing = 0
    apart: list[float] = []
    who: list[Any] = []
    for batch in track(batches, len(batches)):
        columns, found = store.read([prepared.users[user].item() for user in batch])
        same = found & (columns["events"] == prepared.lengths[batch])
        missing += int((~found).sum())
        changed += int((found & ~same).sum())
        if not same.any():
            continue
        some = {name: column[same] for name, column in columns.items() if name != SEEN}
        records = prepared.source.__getitems__(batch[same].tolist())
        lines = [Events(record.items, record.times) for record in records]
        apart += compare(some, form, masked, lines)
        who += prepared.users[batch[same]].tolist()
    if not apart:
        return Verified(0, changed, missing, 0.0, bound, None)
    worst = int(np.argmax(apart))  # NaN counts as the largest
    return Verified(len(apart), changed, missing, apart[worst], bound, who[worst])


class Comparison:
    """Stored rows against histories, of up to `CHECKED` users: one shape, compiled once."""

    def __init__(self, rec: Recommender) -> None:
        self.rec = rec
        self._table = rec.model.item_table(rec.params)
        self._apart = jax.jit(_apart)

    def __call__(
        self, columns: Columns, form: str, masked: "MaskedForward", histories: list[Events]
    ) -> list[float]:
        """Largest difference of scores over the range of scores, per user."""
        count = len(histories)
        index = np.resize(np.arange(count), CHECKED)  # filled up with users that are there
        stored = self.rec.queries({n: c[index] for n, c in columns.items()}, form)
        exact = masked([histories[i] for i in index])
        found: list[float] = np.asarray(self._apart(self._table, stored, exact))[:count].tolist()
        return found


def _apart(table: jax.Array, stored: Queries, exact: Queries) -> jax.Array:
    """[B] largest difference of scores; where a user's scores have a range, relative to it."""

    def one(pair: tuple[Queries, Queries]) -> jax.Array:
        found, wanted = (
            retrieval.scores(x[None], table, None if own is None else _one(own))[0, 1:]
            for x, own in pair
        )
        spread = wanted.max() - wanted.min()
        return jnp.abs(found - wanted).max() / jnp.where(spread == 0, 1.0, spread)

    return jax.lax.map(one, (stored, exact))  # scores of one user at a time in memory


def _one(own: retrieval.Own) -> retrieval.Own:
    return retrieval.Own(*(a[None] for a in own))


class MaskedForward:
    """Queries for the event behind whole histories, by one masked forward over all of each."""

    def __init__(self, rec: Recommender) -> None:
        self.rec = rec
        self._compiled: dict[int, Any] = {}
        self._own = jax.jit(rec.model.own_items)

    def __call__(self, histories: list[Events]) -> Queries:
        """Queries [B, D + K] and own items; histories are not empty."""
        model, config = self.rec.model, self.rec.config.layout
        n, rows = config.segment_size, max(CHECKED, len(histories))
        counts = np.asarray([len(items) for items, _ in histories])
        complete = np.maximum(counts - config.recent_min, 0) // n
        slots = 1 << int(complete.max(initial=1) - 1).bit_length()  # few shapes
        items = np.zeros((rows, slots * n + config.recent), np.int32)
        times = np.zeros((rows, slots * n + config.recent + 1), np.int32)
        lengths = np.zeros((rows, slots + 1), np.int32)
        for row, (line, clock) in enumerate(histories):
            start = (slots - complete[row]) * n
            items[row, start : start + len(line)] = line
            times[row, start : start + len(line)] = clock
            times[row, start + len(line)] = clock[-1]
            lengths[row, slots - complete[row] : slots] = n
        pending = counts - complete * n
        lengths[: len(counts), -1] = pending
        layout = model.layout.with_segments(slots)
        last = layout.item_positions[slots * n + np.maximum(pending, 1) - 1]
        answers = np.zeros(rows, np.int32)
        answers[: len(counts)] = np.where(pending > 0, last, layout.token_positions[-1])
        if slots not in self._compiled:
            self._compiled[slots] = jax.jit(functools.partial(_answers, model, layout))
        x = self._compiled[slots](self.rec.params, items, lengths, times, answers)
        if not model.half_lives.number:
            return x, None
        visible = np.zeros((len(counts), config.max_segments * n + config.recent), np.int32)
        clocks = np.zeros_like(visible)
        for row, (line, clock) in enumerate(histories):
            oldest = max(complete[row] - config.max_segments, 0) * n
            visible[row, : len(line) - oldest] = line[oldest:]
            clocks[row, : len(line) - oldest] = clock[oldest:]
        return x, self._own(visible, clocks)


def _answers(
    model: Model,
    layout: SegmentLayout,
    params: Params,
    items: jax.Array,
    lengths: jax.Array,
    times: jax.Array,
    answers: jax.Array,
) -> jax.Array:
    y, _ = model.forward(params, items, layout, lengths, times)
    return model.queries(params, jnp.take_along_axis(y, answers[:, None, None], axis=1)[:, 0])
