"""What the fused kernels compute for a layout: rows in fast memory, blocks, cost, limits.

One program of a kernel holds a user's whole row for one group of heads. Segments lie in it
padded to `ROWS` rows, so that each starts where a vector register does. Keys are a segment's own
positions and the tokens of earlier segments; the ones that it sees are one range.
"""

import dataclasses
import functools
import math

import numpy as np

from jaxrec.layout import SegmentLayout
from jaxrec.nn.attention.weights import Kind

ROWS, LANES = 8, 128  # a vector register of a TPU core: sublanes, lanes
CHUNK = LANES  # query rows computed at once: blocks of pairs are square
BUCKETS = LANES  # rows of the time table that a kernel holds: one per lane
TOKENS_INFO, INFO = 2, 4  # rows of integers: see `fused.Operands`
FAST_MEMORY = 64 * 2**20  # bytes a kernel may use: a core of v5p has these, v5e and v6e twice


def padded(count: int, multiple: int) -> int:
    """The smallest multiple that holds `count`."""
    return -(-count // multiple) * multiple


@dataclasses.dataclass(frozen=True)
class KernelRun:
    """Segments of equal shape: index of the first, how many, positions, rows, first row."""

    first: int
    count: int
    length: int
    rows: int
    start: int


@dataclasses.dataclass(frozen=True)
class Plan:
    """A layout as the kernels see it.

    normalizer: divisor of `pointwise`. interpret: run on any device, slowly (tests).
    """

    layout: SegmentLayout
    kind: Kind
    normalizer: float
    heads: int
    head_width: int
    interpret: bool = False

    @functools.cached_property
    def runs(self) -> tuple[KernelRun, ...]:
        """The layout's runs, one behind the other."""
        runs, start = [], 0
        for run in self.layout.runs():
            rows = padded(run.length, ROWS)
            runs.append(KernelRun(run.first, run.count, run.length, rows, start))
            start += run.count * rows
        return tuple(runs)

    @property
    def segments(self) -> int:
        """Segments that have positions."""
        return sum(run.count for run in self.runs)

    @property
    def rows(self) -> int:
        """Rows of a user."""
        return sum(run.count * run.rows for run in self.runs)

    @property
    def segment_rows(self) -> int:
        """Rows of the longest segment."""
        return max(run.rows for run in self.runs)

    @property
    def lanes(self) -> int:
        """Lanes of the longest segment's keys."""
        return padded(self.segment_rows, LANES)

    @functools.cached_property
    def earlier(self) -> np.ndarray:
        """int [K]: the earlier tokens that some segment sees, on the layout's key axis."""
        return max((self.layout.earlier_tokens(run).keys for run in self.layout.runs()), key=len)

    @property
    def token_lanes(self) -> int:
        """Lanes of the earlier tokens; 0: there are none."""
        return padded(len(self.earlier), LANES)

    @functools.cached_property
    def ranges(self) -> np.ndarray:
        """int32 [S, 2]: which of `earlier` a segment sees, first and one past the last."""
        ranges = np.zeros((self.segments, 2), np.int32)
        for run in self.layout.runs():
            for segment, row in zip(
                run.segments, self.layout.earlier_tokens(run).visible, strict=True
            ):
                seen = np.flatnonzero(row)
                if len(seen):
                    ranges[segment] = seen[0], seen[-1] + 1
                    assert seen[-1] + 1 - seen[0] == len(seen), "tokens of a window are one range"
        return ranges

    @property
    def group(self) -> int:
        """Heads of a program: as few as fill the lanes, or all."""
        count = LANES // math.gcd(LANES, self.head_width)
        return count if self.heads % count == 0 else self.heads

    @property
    def width(self) -> int:
        """Lanes of a program's heads."""
        return self.group * self.head_width

    def chunks(self, run: KernelRun) -> list[tuple[int, int]]:
        """(first row, one past the last) of every chunk of a segment's query rows."""
        return [(a, min(a + CHUNK, run.rows)) for a in range(0, run.rows, CHUNK)]

    # -- cost --------------------------------------------------------------------------

    @property
    def pairs(self) -> int:
        """Query-key pairs that a program computes when nothing is skipped."""
        return sum(
            run.count * (stop - start) * (stop + self.token_lanes)
            for run in self.runs
            for start, stop in self.chunks(run)
        )

    def flops(self, users: int, products: int) -> int:
        """FLOPs of a call with this many products of pairs and heads (2 forward, 5 backward)."""
        return products * 2 * users * self.heads * self.head_width * self.pairs

    def temporaries(self, backward: bool) -> int:
        """Bytes of the arrays of a chunk that live at the same time, counted generously."""
        rows, columns = min(CHUNK, self.segment_rows), self.lanes + self.token_lanes
        # buckets; logits, weights, their gradients; those of all heads wait for the time table
        arrays = 1 + (6 + self.group if backward else 4)
        return 4 * rows * columns * arrays
