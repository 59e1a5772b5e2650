"""Batches for training and evaluation, read from the prepared records through grain.

Batch N of training depends on (seed, N, configuration) alone (`jaxrec.data.batch_plan`): not on
where a run started, nor on the number of workers or processes.
"""

import dataclasses
import sys
import weakref
from collections.abc import Iterator
from typing import Protocol

import numpy as np

from jaxrec.config import LayoutConfig
from jaxrec.data import batch_plan, splits, windows
from jaxrec.data.batch_plan import BatchPlan
from jaxrec.data.prepared import Prepared
from jaxrec.data.records import RecordSource
from jaxrec.data.windows import Cut
from jaxrec.errors import DataError
from jaxrec.layout import SegmentLayout
from jaxrec.types import Batch


def train_batches(
    prepared: Prepared,
    layout_config: LayoutConfig,
    *,
    batch_size: int,
    seed: int,
    start_step: int = 0,
    vary_recent: bool = True,
    workers: int = 1,
    worker_processes: int = 0,
    process_index: int = 0,
    process_count: int = 1,
    vary_segments: bool = False,
    length_buckets: int = 1,
) -> Iterator[Batch]:
    """Training batches `start_step`, `start_step + 1`, ... without end.

    batch_size: rows of the *global* batch. Each of `process_count` processes gets its own
        `batch_size // process_count` rows of it; put together in process order they are the
        batch of a single process.
    length_buckets: sizes of batches at most. With more than one, a batch holds users of similar
        length in rows of as many item slots as they may need, and the more rows: `batch_size` times
        how often such a row goes into the whole layout.
    workers: reading threads; 0 reads in the calling thread. worker_processes: grain processes
        that read instead.

    Users are drawn in proportion to the windows that their training events fill. Windows are cut by
    `windows.train_cuts`. Starting late costs nothing: earlier batches are not made.

    Raises DataError when no user has two training events, ValueError for a batch size that the
    processes cannot share.
    """
    import grain

    _share(batch_size, process_index, process_count)
    plan = batch_plan.make(
        prepared.boundaries.train_end,
        layout_config,
        batch_size=batch_size,
        seed=seed,
        vary_recent=vary_recent,
        vary_segments=vary_segments,
        length_buckets=length_buckets,
        process_index=process_index,
        process_count=process_count,
    )
    if plan is None:
        raise DataError(
            f"{prepared.folder}: no user has two training events. Lower data.holdout or give "
            "longer histories"
        )
    make_batch = _TrainBatch(prepared.source, plan)
    numbers = grain.MapDataset.range(start_step, sys.maxsize)
    threads = grain.ReadOptions(
        num_threads=0 if worker_processes else workers,
        prefetch_buffer_size=0 if worker_processes else 4 * workers,
    )
    batches = numbers.map(make_batch).to_iter_dataset(threads)
    if worker_processes:
        from absl import flags

        if not flags.FLAGS.is_parsed():  # grain's workers read absl flags
            flags.FLAGS.mark_as_parsed()
        options = grain.MultiprocessingOptions(num_workers=worker_processes)
        batches = batches.mp_prefetch(options)
    return _Stream(iter(batches))


def eval_batches(
    prepared: Prepared,
    layout_config: LayoutConfig,
    *,
    split: str,
    batch_size: int,
    recent_only: bool = False,
    users: np.ndarray | None = None,
    num_segments: int | None = None,
    process_index: int = 0,
    process_count: int = 1,
) -> Iterator[Batch]:
    """Batches that hold every target of `split` (validation, test) exactly once.

    Rows are those of `windows.eval_cuts`, ordered by user; padding rows (user -1) fill the last
    batch. Everything before a target is input, validation events before test targets included.

    users: int [M], dense indices of the users to evaluate, in this order (default: all).
    recent_only: complete segments absent, the recent window as full as it can be.
    num_segments: lay out more complete segments than `max_segments` (compressed mode).
    batch_size, process_index, process_count: as in `train_batches`.
    """
    local = _share(batch_size, process_index, process_count)
    layout = SegmentLayout.from_config(layout_config)
    if num_segments is not None:
        layout = layout.with_segments(num_segments)
    first, stop = splits.target_range(prepared.boundaries, prepared.lengths, split)
    chosen = np.arange(prepared.num_users) if users is None else np.asarray(users, np.int64)
    cut = windows.eval_cuts(
        chosen,
        first[chosen],
        stop[chosen],
        layout_config,
        recent_only=recent_only,
        num_segments=num_segments,
    )
    cut = cut.padded(-(-len(cut.user) // batch_size) * batch_size)
    for start in range(process_index * local, len(cut.user), batch_size):
        yield read_batch(cut.take(slice(start, start + local)), layout, prepared.source)


def next_batches(
    prepared: Prepared,
    layout_config: LayoutConfig,
    users: np.ndarray,
    *,
    batch_size: int,
    now: np.ndarray | None = None,
) -> Iterator[Batch]:
    """Batches that ask for the event behind each user's last: a row per user, one target each.

    Rows are in the order of `users` int [U], dense indices that may repeat, and cut as those of
    `eval_batches`; padding rows fill the last batch. The target is no item (0). now: int32 [U], its
    time (default: that of the user's last event).
    """
    layout = SegmentLayout.from_config(layout_config)
    lengths = prepared.lengths[users]
    cut = windows.eval_cuts(np.asarray(users, np.int64), lengths, lengths + 1, layout_config)
    for start in range(0, len(users), batch_size):
        batch = slice(start, start + batch_size)
        records = prepared.source.__getitems__(users[batch].tolist())
        moments = [record.times[-1] for record in records] if now is None else now[batch]
        items = [np.append(record.items, np.int32(0)) for record in records]
        times = [np.append(r.times, moment) for r, moment in zip(records, moments, strict=True)]
        base = np.cumsum([0, *map(len, items)])[:-1]
        yield windows.lay_out(
            cut.take(batch).padded(batch_size),
            layout,
            np.concatenate(items),
            np.concatenate(times),
            base=np.append(base, np.zeros(batch_size - len(base), np.int64)),
        )


def read_batch(
    cut: Cut, layout: SegmentLayout, source: RecordSource, sizes: np.ndarray | None = None
) -> Batch:
    """The batch of a cut: reads the histories and lays them out (`windows.lay_out`).

    sizes: int64 [B] or None, as there.
    """
    present = np.unique(cut.user[cut.user >= 0])
    records = source.__getitems__(present.tolist())
    counts = np.asarray([0, *(len(record.items) for record in records)])
    padding = np.zeros(1, np.int32)  # padding rows index into it
    items = np.concatenate([*(record.items for record in records), padding])
    times = np.concatenate([*(record.times for record in records), padding])
    base = np.cumsum(counts)[np.searchsorted(present, cut.user)]
    return windows.lay_out(cut, layout, items, times, base=base, sizes=sizes)


class _Closable(Protocol):
    """What grain's iterators are, untyped in grain."""

    def __next__(self) -> Batch: ...

    def close(self) -> None: ...


class _Stream(Iterator[Batch]):
    """Closes grain's threads and processes when it is dropped and before the interpreter ends."""

    def __init__(self, iterator: _Closable) -> None:
        self._iterator = [iterator]  # a list: the finalizer must not keep `self` alive
        weakref.finalize(self, self._close, self._iterator)

    def __next__(self) -> Batch:
        return next(self._iterator[0])

    @staticmethod
    def _close(held: list[_Closable]) -> None:
        held.pop().close()


def _share(batch_size: int, process_index: int, process_count: int) -> int:
    """Rows of a batch that one process reads. Raises ValueError for processes that do not fit."""
    if batch_size % process_count or not 0 <= process_index < process_count:
        raise ValueError(
            f"batch_size={batch_size}, process_index={process_index}, "
            f"process_count={process_count}: the processes must share a batch evenly"
        )
    return batch_size // process_count


@dataclasses.dataclass(frozen=True)
class _TrainBatch:
    """Number of a batch -> this process's rows of it; a value that travels to grain's workers."""

    source: RecordSource
    plan: BatchPlan

    def __call__(self, number: int) -> Batch:
        cut, layout, sizes = self.plan(number)
        return read_batch(cut, layout, self.source, sizes)
