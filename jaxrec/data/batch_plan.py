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
# batches, and windows of them, that are sorted together, at most: every process plans all of them
POOL, POOL_WINDOWS = 32, 8192


class Planned(NamedTuple):
    """This process's rows of a batch; sizes: int64 [B], events of complete segments, or None."""

    cut: Cut
    layout: SegmentLayout
    sizes: np.ndarray | None


class _Pool(NamedTuple):
    """Batches whose windows were sorted together.

    cut: of all windows. segment_sizes: as `Planned.sizes`. rows: int64 [N, rows], the windows of
    each batch. sizes: of the rows of each.
    """

    cut: Cut
    segment_sizes: np.ndarray | None
    rows: np.ndarray
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
        # row blocks of the global batch go to the processes in turn
        local = bucket.rows // self.process_count
        own = np.arange(self.process_index * local, (self.process_index + 1) * local)
        if not (pooled := self.pooled(bucket)):
            positions = (turn.number * bucket.rows + own).tolist()
            draws = [self._random(turn.bucket, p).random(windows.NUM_DRAWS) for p in positions]
            cut, sizes = self._cut(turn.bucket, positions, np.stack(draws))
            size = bucket.sizes[-1]
        else:
            pool = self._pool(turn.bucket, turn.number // pooled)
            rows = pool.rows[turn.number % pooled][own]
            size = pool.sizes[turn.number % pooled]
            cut = pool.cut.take(rows)
            sizes = None if pool.segment_sizes is None else pool.segment_sizes[rows]
        layout = SegmentLayout.from_config(self.layout_config)
        return Planned(cut, layout.shortened(size.slots, size.complete + 1), sizes)

    @staticmethod
    def pooled(bucket: Bucket) -> int:
        """Batches that are sorted together; 0: none are, and all have the bucket's own size."""
        if len(bucket.sizes) == 1 or bucket.rows > POOL_WINDOWS:
            return 0
        # not more than an epoch, or a window would meet itself in a batch
        most = min(POOL, POOL_WINDOWS // bucket.rows, bucket.num_windows // bucket.rows)
        return max(1, most)

    def _pool(self, index: int, number: int) -> _Pool:
        """Pool `number` of a bucket."""
        key = index, number
        if key not in self._pools:
            bucket = self.buckets[index]
            count = self.pooled(bucket)
            first, windows_in_all = number * count * bucket.rows, count * bucket.rows
            random = self._random(index, number, word=1)
            draws = random.random((windows_in_all, windows.NUM_DRAWS))
            cut, sizes = self._cut(index, list(range(first, first + windows_in_all)), draws)
            rows = np.lexsort((cut.recent, cut.segments)).reshape(count, bucket.rows)
            rows = random.permutation(rows)  # of the batches: short ones do not come first
            longest = (
                (int(cut.segments[batch].max()), int(cut.recent[batch].max())) for batch in rows
            )
            made = _Pool(cut, sizes, rows, [bucket.size_of(*most) for most in longest])
            for old in list(self._pools):  # other threads read and write it, too
                if old[0] == index and old[1] < number - 1:
                    self._pools.pop(old, None)
            self._pools[key] = made
        return self._pools[key]

    def _cut(
        self, index: int, positions: list[int], uniform: np.ndarray
    ) -> tuple[Cut, np.ndarray | None]:
        """The windows of a bucket at positions [B] of its sequence, cut; and their sizes.

        uniform: float64 [B, NUM_DRAWS].
        """
        order, config, sizes = self.orders[index], self.layout_config, None
        user = self.buckets[index].users_of(np.asarray([order[p] for p in positions]))
        if self.vary_segments and config.mode == "compressed":
            sizes = windows.segment_sizes(config, uniform[:, windows.SEGMENT_SIZE])
        ends = self.train_end[user]
        cut = windows.train_cuts(
            user, ends, config, uniform, vary_recent=self.vary_recent, sizes=sizes
        )
        return cut, sizes

    def _random(self, bucket: int, number: int, *, word: int = 0) -> np.random.Generator:
        """The generator of example `number` of a bucket; word 1: of pool `number`."""
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
