"""Which windows training batch N holds, how they are cut, and in which layout. Nothing is read.

The order of training examples is one endless sequence per bucket (`jaxrec.data.buckets`): epoch
after epoch, each a permutation of its windows keyed by (seed, epoch). How an example is cut is
drawn with a generator keyed by (seed, bucket, position in the sequence).

Cuts differ in length even between users of similar length, because the recent window and the
number of segments are drawn. So where a bucket allows shorter rows, the windows of several batches
are sorted by their cuts, and every batch gets the shortest rows that hold its own.
"""

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from jaxrec.config import LayoutConfig
from jaxrec.data import buckets, windows
from jaxrec.data.buckets import Bucket, Size
from jaxrec.data.windows import Cut
from jaxrec.layout import SegmentLayout

# between the seeds of the orders of neighbouring buckets; odd, so that no two of them are equal
_SEED_STEP = 0x9E3779B9
POOL = 32  # batches whose windows are sorted together, at most


class Planned(NamedTuple):
    """This process's rows of a batch; sizes: int64 [B], events of complete segments, or None."""

    cut: Cut
    layout: SegmentLayout
    sizes: np.ndarray | None


class _Pool(NamedTuple):
    """Batches whose windows were sorted together.

    positions: int64 [N, rows], examples of each in the sequence of their bucket. sizes: of their
    rows.
    """

    positions: np.ndarray
    sizes: list[Size]


@dataclasses.dataclass(frozen=True)
class BatchPlan:
    """Number of a batch -> `Planned`; a value that travels to other processes.

    orders: the windows of each bucket, in the order of training. turns: batches of each bucket in
    a cycle.
    """

    layout_config: LayoutConfig
    train_end: np.ndarray
    buckets: tuple[Bucket, ...]
    orders: list[Sequence[int]]
    turns: tuple[int, ...]
    seed: int
    vary_recent: bool
    vary_segments: bool
    process_index: int
    process_count: int
    # (bucket, number) of the last pools: each serves many batches
    _pools: dict[tuple[int, int], _Pool] = dataclasses.field(default_factory=dict, repr=False)

    def __call__(self, number: int) -> Planned:
        """The batch of this number: a function of it and the fields alone."""
        turn = buckets.turn(number, self.turns, self.seed)
        bucket = self.buckets[turn.bucket]
        if len(bucket.sizes) == 1:
            first = turn.number * bucket.rows
            positions, size = np.arange(first, first + bucket.rows), bucket.sizes[0]
        else:
            pool, place = divmod(turn.number, self._pooled(bucket))
            found = self._pool(turn.bucket, pool)
            positions, size = found.positions[place], found.sizes[place]
        # row blocks of the global batch go to the processes in turn
        local = bucket.rows // self.process_count
        own = positions[self.process_index * local :][:local]
        cut, sizes = self._cut(turn.bucket, own)
        layout = SegmentLayout.from_config(self.layout_config)
        return Planned(cut, layout.shortened(size.slots, size.complete + 1), sizes)

    @staticmethod
    def _pooled(bucket: Bucket) -> int:
        """Batches of a pool: not more than an epoch, or a window would meet itself in a batch."""
        return min(POOL, max(1, bucket.num_windows // bucket.rows))

    def _pool(self, index: int, number: int) -> _Pool:
        """Pool `number` of a bucket."""
        key = index, number
        if key not in self._pools:
            bucket = self.buckets[index]
            count = self._pooled(bucket)
            first = number * count * bucket.rows
            positions = np.arange(first, first + count * bucket.rows)
            cut, _ = self._cut(index, positions)
            order = np.lexsort((cut.recent, cut.segments)).reshape(count, bucket.rows)
            shuffled = self._random(index, number, word=1).permutation(count)
            order = order[shuffled]
            sizes = [
                bucket.size_of(int(cut.segments[rows].max()), int(cut.recent[rows].max()))
                for rows in order
            ]
            for old in [old for old in self._pools if old[0] == index and old[1] < number - 1]:
                self._pools.pop(old, None)  # another thread may have been faster
            self._pools[key] = _Pool(positions[order], sizes)
        return self._pools[key]

    def _cut(self, index: int, positions: np.ndarray) -> tuple[Cut, np.ndarray | None]:
        """The windows of a bucket at positions [B] of its sequence, cut; and their sizes."""
        order, config = self.orders[index], self.layout_config
        user = self.buckets[index].users_of(np.asarray([order[p] for p in positions.tolist()]))
        draws = [
            self._random(index, position).random(windows.NUM_DRAWS)
            for position in positions.tolist()
        ]
        uniform, sizes = np.stack(draws), None
        if self.vary_segments and config.mode == "compressed":
            sizes = windows.segment_sizes(config, uniform[:, windows.SEGMENT_SIZE])
        ends = self.train_end[user]
        cut = windows.train_cuts(
            user, ends, config, uniform, vary_recent=self.vary_recent, sizes=sizes
        )
        return cut, sizes

    def _random(self, bucket: int, number: int, *, word: int = 0) -> np.random.Generator:
        """The generator of an example at a position of a sequence; word: what else is drawn."""
        key = np.asarray([self.seed % 2**64, number], np.uint64)
        # high words of the counter: sequences of draws that never meet
        random = np.random.Philox(key=key, counter=np.asarray([0, 0, word, bucket], np.uint64))
        return np.random.Generator(random)


def make(
    train_end: np.ndarray,
    config: LayoutConfig,
    *,
    batch_size: int,
    seed: int,
    vary_recent: bool = True,
    vary_segments: bool = False,
    length_buckets: int = 1,
    process_index: int = 0,
    process_count: int = 1,
) -> BatchPlan | None:
    """The plan of training batches; None where nobody has two training events.

    train_end: int64 [U], training events per user. Other arguments: as of
    `pipeline.train_batches`.
    """
    planned = buckets.plan(
        train_end,
        config,
        batch_size=batch_size,
        count=length_buckets,
        vary_segments=vary_segments,
    )
    if not planned:
        return None
    return BatchPlan(
        layout_config=config,
        train_end=train_end,
        buckets=planned,
        orders=[_order(bucket, seed + _SEED_STEP * b) for b, bucket in enumerate(planned)],
        turns=buckets.turns(planned),
        seed=seed,
        vary_recent=vary_recent,
        vary_segments=vary_segments,
        process_index=process_index,
        process_count=process_count,
    )


def _order(bucket: Bucket, seed: int) -> Sequence[int]:
    """Windows of a bucket in the order of training: an endless sequence, made as it is read."""
    import grain

    return grain.MapDataset.range(bucket.num_windows).shuffle(seed=seed % 2**32).repeat()
