"""Which part of a history fills a layout: cuts, and the batches they give. Pure NumPy.

A `Cut` says per row which events are laid out where; `train_cuts` and `eval_cuts` decide it,
`lay_out` gathers the events. Alignment is that of docs/method.md: a history of t events has
c(t) = max(0, (t - r_min) // n) complete segments, event i is in segment i // n, and the events
after the first c(t) segments are the recent window.

Dimension letters: B rows, E item slots, S segments with the recent window, n segment size.
"""

from typing import NamedTuple

import numpy as np

from jaxrec.config import LayoutConfig
from jaxrec.layout import SegmentLayout
from jaxrec.types import Batch

# What each column of `uniform` decides: the last target, whether the recent window's length is
# drawn and which, whether the number of segments is drawn and which, events per segment.
LAST_TARGET, DRAW_RECENT, RECENT, DRAW_SEGMENTS, SEGMENTS, SEGMENT_SIZE = range(6)
NUM_DRAWS = 6


class Cut(NamedTuple):
    """Rows of a batch as ranges of histories, int64 [B] each; event numbers count from 0.

    user: dense user index, -1 in a padding row.
    start: first input event. The inputs are `segments` complete segments, then `recent` events.
    segments: complete segments, next to the recent window.
    recent: events in the recent window; the event behind it is a target only.
    first, stop: events [first, stop) are the weighted targets.
    """

    user: np.ndarray
    start: np.ndarray
    segments: np.ndarray
    recent: np.ndarray
    first: np.ndarray
    stop: np.ndarray

    def take(self, rows: slice | np.ndarray) -> "Cut":
        """The cuts of some rows."""
        return Cut(*(column[rows] for column in self))

    def padded(self, rows: int) -> "Cut":
        """The same cut with padding rows behind, `rows` in all."""
        extra = rows - len(self.user)
        padding = Cut(np.full(extra, -1), *(np.zeros(extra, np.int64) for _ in range(5)))
        return Cut(*(np.concatenate(pair) for pair in zip(self, padding, strict=True)))


def lay_out(
    cut: Cut,
    layout: SegmentLayout,
    items: np.ndarray,
    times: np.ndarray,
    *,
    base: np.ndarray,
    sizes: np.ndarray | None = None,
) -> Batch:
    """The batch of a cut, items and times gathered from flat histories.

    items, times: int32 [N], the rows' histories (or the whole data set), one after the other.
    base: int64 [B], index of event 0 of each row's history in them.
    sizes: int64 [B], events of a row's complete segments (default: all that fit). A shorter
    segment leaves a gap behind its events; the item before the gap predicts nothing, the
    segment's last token does.
    """
    slots = np.arange(layout.num_items + 1)
    starts = layout.item_segment_starts
    last = layout.num_segments - 1
    segment = np.minimum(np.searchsorted(starts[1:], slots, side="right"), last)
    offset = slots - starts[segment]
    if sizes is None:
        sizes = np.full(len(cut.user), layout.segments[0][0] if last else 0)
    size = sizes[:, None]
    absent = (last - cut.segments)[:, None]  # complete segments that the row does not have
    in_recent = segment == last
    # a gap at the end of a short segment gets the time of the event before it, and so do the
    # segment's tokens
    inside = np.where(in_recent[None], offset[None], np.minimum(offset[None], size - 1))
    event = cut.start[:, None] + (segment[None] - absent) * size + inside
    present = np.where(
        in_recent[None],
        offset[None] <= cut.recent[:, None],
        (segment[None] >= absent) & (offset[None] < size),
    )
    present &= cut.user[:, None] >= 0
    has_time = present | (~in_recent[None] & (segment[None] >= absent) & (cut.user[:, None] >= 0))
    source = np.where(has_time, base[:, None] + event, 0)
    weighted = present & (event >= cut.first[:, None]) & (event < cut.stop[:, None])
    recent = np.where(cut.user >= 0, cut.recent, 0)
    lengths = np.where(np.arange(last + 1)[None] >= absent, size, 0)
    lengths[:, last] = recent
    return Batch(
        items=np.where(present, items[source], 0).astype(np.int32),
        times=np.where(has_time, times[source], 0).astype(np.int32),
        lengths=lengths.astype(np.int32),
        weights=weighted.astype(np.float32),
        user=cut.user.astype(np.int32),
        history=cut.first.astype(np.int32),
    )


def count_windows(train_end: np.ndarray, layout: SegmentLayout) -> np.ndarray:
    """int64 [U], windows per user and epoch: training targets / item slots, rounded up."""
    targets = np.maximum(train_end - 1, 0)  # the first event has nothing before it
    return -(-targets // layout.num_items)


def most(
    train_end: np.ndarray, config: LayoutConfig, *, vary_segments: bool
) -> tuple[np.ndarray, np.ndarray]:
    """(complete segments, events of the recent window) that hold every training window of a user.

    train_end: int64 [U]; both int64 [U]. With complete segments, they are the most that any draw
    lays out (`train_cuts`), next to a whole recent window; vary_segments: of the shortest size
    (`segment_sizes`).
    """
    inputs = np.maximum(train_end - 1, 0)
    if config.mode != "compressed":
        room = config.history if config.mode == "full" else config.recent
        return np.zeros_like(inputs), np.minimum(inputs, room)
    size = shortest_segment(config.segment_size) if vary_segments else config.segment_size
    complete = np.clip((inputs - config.recent_min) // size, 0, config.max_segments)
    alone = np.minimum(inputs, config.recent)
    return complete, np.where(complete > 0, config.recent, alone)


def shortest_segment(size: int) -> int:
    """Events of the shortest segment that `segment_sizes` draws: n / 2, rounded up."""
    return -(-size // 2)


def segment_sizes(config: LayoutConfig, uniform: np.ndarray) -> np.ndarray:
    """int64 [B], events of the complete segments of training windows of random length.

    uniform: float64 [B], uniform in [0, 1). Half of the windows keep n, the others draw one of
    n / 2 (rounded up), ..., n.
    """
    n = config.segment_size
    shortest = shortest_segment(n)
    return np.where(uniform < 0.5, shortest + _below(2 * uniform, n - shortest + 1), n)


def train_cuts(
    user: np.ndarray,
    train_end: np.ndarray,
    config: LayoutConfig,
    uniform: np.ndarray,
    *,
    vary_recent: bool,
    sizes: np.ndarray | None = None,
) -> Cut:
    """Training windows, one per row; every event behind the first input is a target.

    user, train_end: int64 [B], users with at least two training events and how many they have.
    uniform: float64 [B, 5 or more], uniform in [0, 1), a column per decision (`LAST_TARGET`, ...).
    sizes: int64 [B], as for `lay_out`.

    A history that fits is taken whole. Of a longer one the last target is drawn so that every
    event is a target equally often, only the newest and oldest ones more often. Without
    `vary_recent` segments start at multiples of n, as they do when serving. With it, half of
    the windows take as many events as fit and start a segment at the oldest of them; the other
    half draw the length of the recent window, and one in four of those also the number of
    segments, so that every age of a state and every window length is met; events that fit in
    no complete segment then fall off at the old end.
    """
    layout = SegmentLayout.from_config(config)
    slots = layout.num_items
    newest = train_end - 1
    end = _below(uniform[:, LAST_TARGET], newest + slots - 1) + 1
    end = np.clip(end, np.minimum(slots, newest), newest)  # the last target; inputs lie before
    if config.mode != "compressed":
        start = np.maximum(end - slots, 0)
        return _train_cut(user, start, segments=np.zeros_like(end), recent=end - start, size=0)
    n = config.segment_size if sizes is None else sizes
    low = config.recent_min
    origin = np.maximum(end - slots, 0) if vary_recent else np.zeros_like(end)
    complete = np.maximum((end - origin - low) // n, 0)
    recent = end - origin - complete * n
    segments = np.minimum(complete, config.max_segments)
    if vary_recent:
        drawn = np.minimum(low, end) + _below(
            uniform[:, RECENT], np.minimum(config.recent, end) - np.minimum(low, end) + 1
        )
        count = np.minimum((end - drawn) // n, config.max_segments)
        fewer = _below(uniform[:, SEGMENTS], count + 1)
        count = np.where(uniform[:, DRAW_SEGMENTS] < 0.25, fewer, count)
        drawn = np.where(count == 0, np.minimum(end, config.recent), drawn)
        draw = uniform[:, DRAW_RECENT] < 0.5
        segments, recent = np.where(draw, count, segments), np.where(draw, drawn, recent)
    start = end - segments * n - recent
    return _train_cut(user, start, segments=segments, recent=recent, size=n)


def eval_cuts(
    users: np.ndarray,
    first: np.ndarray,
    stop: np.ndarray,
    config: LayoutConfig,
    *,
    recent_only: bool = False,
    num_segments: int | None = None,
) -> Cut:
    """One row per user and number of complete segments; together they hold every target once.

    users, first, stop: int64 [U], targets of each user are events [first, stop), first >= 1.
    num_segments: complete segments of the layout (default `config.max_segments`).

    `compressed`: target t is predicted from events [0, t) cut as the online rule cuts them:
    c(t) complete segments, the newest `num_segments` of them laid out, and t - c(t) n recent
    events. Targets of a user with the same c(t) share a row. With an empty recent window
    (only when recent_min = 0) the target is predicted by the newest segment's last token.

    `full`, `recent` and `recent_only`: the same rows, inputs being the newest events before the
    row's last target that fit (the layout, the recent window). So for every target these rows
    see at least the events that the compressed row covers (`full`) or holds as items (the
    others). `recent_only` uses the compressed layout with its complete segments absent.
    """
    n, low = config.segment_size, config.recent_min
    count = np.maximum(stop - first, 0)
    user = np.repeat(users, count)
    target = np.arange(count.sum()) + np.repeat(first - (np.cumsum(count) - count), count)
    complete = np.maximum((target - low) // n, 0)
    whole = config.mode != "compressed" or recent_only  # inputs are one run of events
    # a window of n - 1 events cannot hold n targets behind its first event
    alone = (target == complete * n) & whole
    change = (user[1:] != user[:-1]) | (complete[1:] != complete[:-1]) | (alone[1:] != alone[:-1])
    opens = np.flatnonzero(np.concatenate([[len(target) > 0], change]))
    closes = np.concatenate([opens[1:], [len(target)]])[: len(opens)] - 1
    row_first, row_last, row_complete = target[opens], target[closes], complete[opens]
    if whole:
        room = config.history if config.mode == "full" and not recent_only else config.recent
        start = np.maximum(row_last - room, 0)
        segments, recent = np.zeros_like(row_last), row_last - start
    else:
        slots = config.max_segments if num_segments is None else num_segments
        segments = np.minimum(row_complete, slots)
        start, recent = (row_complete - segments) * n, row_last - row_complete * n
    return Cut(
        user=user[opens],
        start=start,
        segments=segments,
        recent=recent,
        first=row_first,
        stop=row_last + 1,
    )


def _train_cut(
    user: np.ndarray,
    start: np.ndarray,
    *,
    segments: np.ndarray,
    recent: np.ndarray,
    size: np.ndarray | int,
) -> Cut:
    """Training windows whose events behind the first are targets; size: events per segment."""
    stop = start + segments * size + recent + 1
    return Cut(user, start, segments, recent, first=start + 1, stop=stop)


def _below(uniform: np.ndarray, bound: np.ndarray | int) -> np.ndarray:
    """Integers 0..bound-1 from uniform numbers in [0, 1)."""
    return np.minimum((uniform * bound).astype(np.int64), bound - 1)
