"""Batches for training and evaluation, read from the prepared records through grain.

The order of training examples is one infinite sequence: epoch after epoch, each a permutation
of all windows keyed by (seed, epoch); what an example looks like is drawn with a generator
keyed by (seed, position in the sequence). So batch N depends on (seed, N, configuration) alone:
not on where a run started, nor on the number of workers or processes.
"""

import dataclasses
import weakref
from collections.abc import Iterator, Sequence
from typing import Protocol

import numpy as np

from jaxrec.config import LayoutConfig
from jaxrec.data import splits, windows
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
) -> Iterator[Batch]:
    """Training batches `start_step`, `start_step + 1`, ... without end.

    batch_size: rows of the *global* batch. Each of `process_count` processes gets its own
        `batch_size // process_count` rows of it; put together in process order they are the
        batch of a single process.
    workers: reading threads; 0: read on demand. worker_processes: grain processes that read
        instead of the threads; 0: none.

    Users come up in proportion to the windows their training events fill. Windows are cut by
    `windows.train_cuts`. Starting late costs nothing: earlier batches are not made.

    Raises DataError when no user has two training events, ValueError for a batch size that the
    processes cannot share.
    """
    import grain

    local = _share(batch_size, process_index, process_count)
    layout = SegmentLayout.from_config(layout_config)
    last_window = np.cumsum(windows.count_windows(prepared.boundaries.train_end, layout))
    if not len(last_window) or not last_window[-1]:
        raise DataError(
            f"{prepared.folder}: no user has two training events. Lower data.holdout or give "
            "longer histories"
        )
    make = _TrainBatch(
        source=prepared.source,
        layout_config=layout_config,
        train_end=prepared.boundaries.train_end,
        last_window=last_window,
        seed=seed,
        vary_recent=vary_recent,
        vary_segments=vary_segments,
    )
    order = grain.MapDataset.range(int(last_window[-1])).shuffle(seed=seed % 2**32).repeat()
    rows = order.map_with_index(_numbered).batch(local, batch_fn=list)
    # row blocks of the global batch go to the processes in turn
    process_rows = rows[start_step * process_count + process_index :: process_count]
    threads = grain.ReadOptions(
        num_threads=0 if worker_processes else workers,
        prefetch_buffer_size=0 if worker_processes else 4 * workers,
    )
    batches = process_rows.map(make).to_iter_dataset(threads)
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
        chosen, first[chosen], stop[chosen], layout_config, recent_only, num_segments
    )
    cut = cut.padded(-(-len(cut.user) // batch_size) * batch_size)
    for start in range(process_index * local, len(cut.user), batch_size):
        yield read_batch(cut.take(slice(start, start + local)), layout, prepared.source)


def read_batch(
    cut: Cut, layout: SegmentLayout, source: RecordSource, sizes: np.ndarray | None = None
) -> Batch:
    """Reads the histories of a cut and lays them out (sizes: see `windows.lay_out`)."""
    present = np.unique(cut.user[cut.user >= 0])
    records = source.__getitems__(present.tolist())
    counts = np.asarray([0, *(len(record.items) for record in records)])
    nothing = [np.zeros(1, np.int32)]  # padding rows index into it
    items = np.concatenate([*(record.items for record in records), *nothing])
    times = np.concatenate([*(record.times for record in records), *nothing])
    base = np.cumsum(counts)[np.searchsorted(present, cut.user)]
    return windows.lay_out(cut, layout, items, times, base, sizes)


class _Closable(Protocol):
    """An iterator of grain."""

    def __next__(self) -> Batch: ...

    def close(self) -> None: ...


class _Stream(Iterator[Batch]):
    """Lets go of grain's threads and processes when dropped and before the interpreter ends."""

    def __init__(self, iterator: "_Closable") -> None:
        self._open = [iterator]
        weakref.finalize(self, self._close, self._open)

    def __next__(self) -> Batch:
        return next(self._open[0])

    @staticmethod
    def _close(held: "list[_Closable]") -> None:
        held.pop().close()


def _share(batch_size: int, process_index: int, process_count: int) -> int:
    if batch_size % process_count or not 0 <= process_index < process_count:
        raise ValueError(
            f"batch_size={batch_size}, process_index={process_index}, "
            f"process_count={process_count}: the processes must share a batch evenly"
        )
    return batch_size // process_count


def _numbered(position: int, window: int) -> tuple[int, int]:
    return position, window


@dataclasses.dataclass(frozen=True)
class _TrainBatch:
    """(position, window) pairs -> Batch; a value that travels to grain's workers."""

    source: RecordSource
    layout_config: LayoutConfig
    train_end: np.ndarray
    last_window: np.ndarray
    seed: int
    vary_recent: bool
    vary_segments: bool

    def __call__(self, rows: Sequence[tuple[int, int]]) -> Batch:
        window = np.asarray([window for _, window in rows])
        user = np.searchsorted(self.last_window, window, side="right")
        chance = np.stack([self._chance(position) for position, _ in rows])
        config = self.layout_config
        sizes = None
        if self.vary_segments and config.mode == "compressed":
            sizes = windows.segment_sizes(config, chance[:, 5])
        ends = self.train_end[user]
        cut = windows.train_cuts(user, ends, config, chance, self.vary_recent, sizes)
        return read_batch(cut, SegmentLayout.from_config(config), self.source, sizes)

    def _chance(self, position: int) -> np.ndarray:
        """float64 [6], uniform in [0, 1), of the example in this place of the sequence."""
        key = [self.seed % 2**64, position]
        return np.random.Generator(np.random.Philox(key=np.asarray(key, np.uint64))).random(6)
