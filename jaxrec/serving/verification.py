"""Stored states against one masked forward over the whole histories."""

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxrec import ranking
from jaxrec.data.prepared import Prepared
from jaxrec.layout import SegmentLayout
from jaxrec.model.recommender import Model
from jaxrec.ranking import ItemIndex
from jaxrec.serving.build import check_data
from jaxrec.serving.compiled import UserQueries
from jaxrec.serving.service import Recommender
from jaxrec.serving.state_rows import SEEN, Events
from jaxrec.serving.tracking import Progress, no_progress
from jaxrec.state_store.row_format import Columns
from jaxrec.state_store.store import UserStateStore
from jaxrec.types import Params, Queries, UserId

# Largest difference of scores, relative to their range, that `verify` accepts by encoding.
# float32 rounds; the others lose bits of K and V (docs/figures.md has what that costs).
BOUNDS = {"float32": 1e-5, "bfloat16": 2e-2, "int8": 5e-2}
BFLOAT16_MODEL = 5e-2  # the same for a model that computes in bfloat16
FORWARD_USERS = 16  # users of one masked forward pass


class Verification(NamedTuple):
    """The result of `verify`.

    checked: users recomputed.
    changed: rows with other events than the prepared history (appended since), not checked.
    missing: users without a row, not checked.
    difference: largest |stored - recomputed| score, relative to the user's range of scores.
    bound: the largest difference that is accepted.
    user: raw id of the user with that difference, None when nobody was checked.
    """

    checked: int
    changed: int
    missing: int
    difference: float
    bound: float
    user: UserId | None

    @property
    def passed(self) -> bool:
        """Whether users were checked and every one is within the bound (NaN is not)."""
        return self.checked > 0 and self.difference <= self.bound


def verify(
    rec: Recommender,
    store: UserStateStore,
    prepared: Prepared,
    *,
    sample: int = 200,
    seed: int = 0,
    progress: Progress = no_progress,
) -> Verification:
    """Compares a sample of stored states with one masked forward over the whole histories.

    sample: users to look at, at least 1; seed: of the sample; progress: over batches of users.
    Raises ValueError, and DataError when the prepared data is not what the model was trained on.
    """
    if sample < 1:
        raise ValueError(f"sample={sample}: at least 1 user is needed")
    check_data(rec, prepared)
    encoding = store.metadata.binding.encoding
    bound = BOUNDS[encoding]
    if rec.config.model.dtype != "float32":
        bound = max(bound, BFLOAT16_MODEL)
    order = np.random.default_rng(seed).permutation(prepared.num_users)[:sample]
    order = order[np.argsort(prepared.lengths[order], kind="stable")]
    batches = [
        order[start : start + FORWARD_USERS] for start in range(0, len(order), FORWARD_USERS)
    ]
    compare = Comparison(rec)
    changed = missing = 0
    differences: list[float] = []
    users: list[UserId] = []
    for batch in progress(batches, len(batches)):
        columns, known = store.read([prepared.users[user].item() for user in batch])
        same_events = known & (columns["events"] == prepared.lengths[batch])
        missing += int((~known).sum())
        changed += int((known & ~same_events).sum())
        if not same_events.any():
            continue
        rows = {name: column[same_events] for name, column in columns.items() if name != SEEN}
        records = prepared.source.__getitems__(batch[same_events].tolist())
        histories = [Events(record.items, record.times) for record in records]
        differences += compare(rows, encoding, histories)
        users += prepared.users[batch[same_events]].tolist()
    if not differences:
        return Verification(0, changed, missing, 0.0, bound, None)
    worst = int(np.argmax(differences))  # NaN counts as the largest
    return Verification(len(differences), changed, missing, differences[worst], bound, users[worst])


class Comparison:
    """Stored rows against histories, of up to `FORWARD_USERS` users: one shape, compiled once."""

    def __init__(self, rec: Recommender) -> None:
        self.rec = rec
        self._exact = MaskedForward(rec)
        self._index = rec.model.item_index(rec.params)
        self._differences = jax.jit(_differences)

    def __call__(self, columns: Columns, encoding: str, histories: Sequence[Events]) -> list[float]:
        """Largest difference of scores over the range of scores, per user.

        columns: rows [B, ...], `encoding` of their vectors; histories: of the same users.
        """
        count = len(histories)
        index = np.resize(np.arange(count), FORWARD_USERS)  # padded by repeating users
        stored = self.rec.queries({n: c[index] for n, c in columns.items()}, encoding)
        exact = self._exact([histories[i] for i in index.tolist()])
        differences: list[float] = np.asarray(
            self._differences(self._index, stored, exact)
        ).tolist()
        return differences[:count]


def _differences(index: ItemIndex, stored: UserQueries, exact: UserQueries) -> jax.Array:
    """[B] largest difference of scores; where a user's scores have a range, relative to it."""

    def difference(pair: tuple[UserQueries, UserQueries]) -> jax.Array:
        stored_scores, exact_scores = (_scores(query, index) for query in pair)
        spread = exact_scores.max() - exact_scores.min()
        largest = jnp.abs(stored_scores - exact_scores).max()
        return largest / jnp.where(spread == 0, 1.0, spread)

    return jax.lax.map(difference, (stored, exact))  # scores of one user at a time in memory


def _scores(user: UserQueries, index: ItemIndex) -> jax.Array:
    """[V] scores of one user, without a batch axis."""
    queries, history = jax.tree.map(lambda a: a[None], user)
    return ranking.scores(queries, index, history)[0, 1:]


class MaskedForward:
    """Queries for the next event of whole histories, by one masked forward pass over each."""

    def __init__(self, rec: Recommender) -> None:
        self.rec = rec
        self._compiled: dict[int, Callable[..., Queries]] = {}
        self._history_items = jax.jit(rec.model.history_items)

    def __call__(self, histories: Sequence[Events]) -> UserQueries:
        """Queries and history items; at least `FORWARD_USERS` rows. No history may be empty."""
        model, layout = self.rec.model, self.rec.config.layout
        counts = np.asarray([len(items) for items, _ in histories])
        complete = np.maximum(counts - layout.recent_min, 0) // layout.segment_size
        slots = 1 << int(complete.max(initial=1) - 1).bit_length()  # few shapes
        inputs = self._inputs(histories, counts, complete, slots)
        if slots not in self._compiled:
            whole = model.layout.with_segments(slots)
            self._compiled[slots] = jax.jit(functools.partial(_masked_queries, model, whole))
        queries = self._compiled[slots](self.rec.params, *inputs)
        if not model.half_lives.number:
            return UserQueries(queries, None)
        visible = self._visible(histories, complete)
        return UserQueries(queries, self._history_items(*visible))

    def _inputs(
        self, histories: Sequence[Events], counts: np.ndarray, complete: np.ndarray, slots: int
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """items, lengths, times and the positions that answer, of a layout of `slots` segments.

        counts: int [B] events per history; complete: int [B] segments that they complete.
        """
        config = self.rec.config.layout
        size, rows = config.segment_size, max(FORWARD_USERS, len(histories))
        items = np.zeros((rows, slots * size + config.recent), np.int32)
        times = np.zeros((rows, slots * size + config.recent + 1), np.int32)
        lengths = np.zeros((rows, slots + 1), np.int32)
        for row, (row_items, row_times) in enumerate(histories):
            start = (slots - complete[row]) * size
            stop = start + len(row_items)
            items[row, start:stop] = row_items
            times[row, start:stop] = row_times
            times[row, stop] = row_times[-1]
            lengths[row, slots - complete[row] : slots] = size
        pending = counts - complete * size
        lengths[: len(counts), -1] = pending
        layout = self.rec.model.layout.with_segments(slots)
        last = layout.item_positions[slots * size + np.maximum(pending, 1) - 1]
        positions = np.zeros(rows, np.int32)
        positions[: len(counts)] = np.where(pending > 0, last, layout.token_positions[-1])
        return items, lengths, times, positions

    def _visible(
        self, histories: Sequence[Events], complete: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Items and times int32 [B, M] of the segments that a state covers, oldest first."""
        config = self.rec.config.layout
        width = config.max_segments * config.segment_size + config.recent
        items, times = np.zeros((2, len(histories), width), np.int32)
        for row, (row_items, row_times) in enumerate(histories):
            oldest = max(complete[row] - config.max_segments, 0) * config.segment_size
            items[row, : len(row_items) - oldest] = row_items[oldest:]
            times[row, : len(row_items) - oldest] = row_times[oldest:]
        return items, times


def _masked_queries(
    model: Model,
    layout: SegmentLayout,
    params: Params,
    items: jax.Array,
    lengths: jax.Array,
    times: jax.Array,
    positions: jax.Array,
) -> Queries:
    """Queries [B, D] of one position per row."""
    y, _ = model.forward(params, items, layout, lengths, times)
    outputs = jnp.take_along_axis(y, positions[:, None, None], axis=1)[:, 0]
    return model.queries(params, outputs)
