"""Cuts and batches against hand-made histories, a slow restatement of the rule, and properties."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxrec.config import LayoutConfig
from jaxrec.data import windows
from jaxrec.data.windows import Cut
from jaxrec.layout import SegmentLayout

SMALL = LayoutConfig(segment_size=3, tokens=1, max_segments=2, recent_min=1)


def lay_out(cut, config, lengths, num_segments=None, sizes=None):
    """Batch of users whose event i is item 100 * (user + 1) + i at time 10 * item."""
    layout = SegmentLayout.from_config(config)
    if num_segments is not None:
        layout = layout.with_segments(num_segments)
    items = np.concatenate([100 * (u + 1) + np.arange(n) for u, n in enumerate(lengths)])
    base = np.concatenate([[0], np.cumsum(lengths)])[:-1]
    return windows.lay_out(cut, layout, items, 10 * items, base=base[cut.user], sizes=sizes)


def rows(cut):
    return [tuple(int(value) for value in row) for row in zip(*cut, strict=True)]


def test_a_cut_is_laid_out_right_aligned():
    one = [np.asarray([value]) for value in (0, 2, 1, 2, 6, 8)]
    batch = lay_out(Cut(*one), SMALL, [9])
    # segment 1 absent, segment 2 = events 2..4, recent = 5, 6, event 7 behind them
    assert batch.items.tolist() == [[0, 0, 0, 102, 103, 104, 105, 106, 107, 0]]
    assert (batch.times == 10 * batch.items).all()
    assert batch.lengths.tolist() == [[0, 3, 2]]
    assert batch.weights.tolist() == [[0, 0, 0, 0, 0, 0, 0, 1, 1, 0]]
    assert batch.user.tolist() == [0]
    assert batch.history.tolist() == [6]
    kinds = [column.dtype.name for column in batch]
    assert kinds == ["int32", "int32", "int32", "float32", "int32", "int32"]


def test_padding_rows_hold_nothing():
    cut = Cut(*(np.asarray([value]) for value in (0, 0, 0, 3, 1, 4))).padded(3)
    batch = lay_out(cut, SMALL, [9])
    assert batch.user.tolist() == [0, -1, -1]
    for column in (batch.items, batch.times, batch.lengths, batch.weights):
        assert not column[1:].any()
        assert column[0].any()


def test_online_rule_on_a_hand_made_history():
    # n = 3, r_min = 1: c(t) = (t - 1) // 3 segments; events 0..10, targets 5..10
    users, first, stop = np.asarray([0]), np.asarray([5]), np.asarray([11])
    cut = windows.eval_cuts(users, first, stop, SMALL)
    assert rows(cut) == [(0, 0, 1, 3, 5, 7), (0, 0, 2, 3, 7, 10), (0, 3, 2, 1, 10, 11)]
    batch = lay_out(cut, SMALL, [11])
    assert batch.items.tolist() == [
        [0, 0, 0, 100, 101, 102, 103, 104, 105, 106],
        [100, 101, 102, 103, 104, 105, 106, 107, 108, 109],
        [103, 104, 105, 106, 107, 108, 109, 110, 0, 0],  # events 0..2 dropped off
    ]
    assert (batch.items * batch.weights).astype(int).tolist() == [
        [0, 0, 0, 0, 0, 0, 0, 0, 105, 106],
        [0, 0, 0, 0, 0, 0, 0, 107, 108, 109],
        [0, 0, 0, 0, 0, 0, 0, 110, 0, 0],
    ]
    assert batch.history.tolist() == [5, 7, 10]


def test_more_segments_can_be_laid_out():
    users, first, stop = np.asarray([0]), np.asarray([10]), np.asarray([11])
    cut = windows.eval_cuts(users, first, stop, SMALL, num_segments=4)
    assert rows(cut) == [(0, 0, 3, 1, 10, 11)]
    batch = lay_out(cut, SMALL, [11], num_segments=4)
    assert batch.lengths.tolist() == [[0, 3, 3, 3, 1]]


def test_empty_recent_window():
    config = LayoutConfig(segment_size=3, tokens=1, max_segments=2, recent_min=0)
    users, first, stop = np.asarray([0]), np.asarray([6]), np.asarray([8])
    cut = windows.eval_cuts(users, first, stop, config)
    assert rows(cut) == [(0, 0, 2, 1, 6, 8)]
    # target 6 stands in the first slot of the recent window: the last token predicts it
    assert lay_out(cut, config, [8]).weights.tolist() == [[0, 0, 0, 0, 0, 0, 1, 1, 0]]
    # without segments nothing would: the rows are split and each fills its window
    alone = windows.eval_cuts(users, first, stop, config, recent_only=True)
    assert rows(alone) == [(0, 4, 0, 2, 6, 7), (0, 5, 0, 2, 7, 8)]


def test_recent_only_keeps_the_layout_and_fills_the_window():
    users, first, stop = np.asarray([0]), np.asarray([7]), np.asarray([11])
    cut = windows.eval_cuts(users, first, stop, SMALL, recent_only=True)
    assert rows(cut) == [(0, 6, 0, 3, 7, 10), (0, 7, 0, 3, 10, 11)]
    batch = lay_out(cut, SMALL, [11])
    assert batch.lengths.tolist() == [[0, 0, 3], [0, 0, 3]]
    assert batch.items[:, :6].tolist() == [[0] * 6] * 2


def test_no_targets_no_rows():
    nothing = np.asarray([0, 1])
    cut = windows.eval_cuts(nothing, np.asarray([3, 5]), np.asarray([3, 2]), SMALL)
    assert rows(cut) == []


configs = st.builds(
    LayoutConfig,
    mode=st.sampled_from(["compressed", "full", "recent"]),
    segment_size=st.integers(1, 5),
    tokens=st.just(1),
    max_segments=st.integers(1, 3),
    recent_min=st.integers(0, 3),
).filter(lambda config: config.recent > 0)


@given(
    configs, st.lists(st.tuples(st.integers(1, 30), st.integers(0, 12)), max_size=4), st.booleans()
)
def test_every_target_once_inputs_before_it(config, users, recent_only):
    lengths = np.asarray([first + count for first, count in users], np.int64)
    first = np.asarray([first for first, _ in users], np.int64)
    cut = windows.eval_cuts(np.arange(len(users)), first, lengths, config, recent_only=recent_only)
    wanted = [100 * (u + 1) + t for u in range(len(users)) for t in range(first[u], lengths[u])]
    if not wanted:
        assert rows(cut) == []
        return
    batch = lay_out(cut, config, lengths)
    layout = SegmentLayout.from_config(config)
    compressed = config.mode == "compressed" and not recent_only
    seen = []
    for row in range(len(batch.user)):
        items, weights = batch.items[row], batch.weights[row]
        user = batch.user[row]
        laid = items[items > 0]
        # one run of the user's own events, in order, right up to the last target
        assert (np.diff(laid) == 1).all()
        assert (laid // 100 == user + 1).all()
        assert weights[items == laid[-1]] == 1
        assert batch.lengths[row].sum() == len(laid) - 1
        assert batch.history[row] == items[weights > 0][0] % 100
        valid = layout.valid(batch.lengths[row][None])[0]
        predicted = np.zeros(len(items), bool)
        targets = layout.target_slots[valid[layout.predictors]]
        predicted[targets] = True
        assert predicted[weights > 0].all()  # every target has a predictor
        for slot in np.flatnonzero(weights):
            target = int(items[slot] % 100)
            seen.append(int(items[slot]))
            oldest = int(laid[0] % 100)
            complete = max(0, (target - config.recent_min) // config.segment_size)
            held = min(complete, config.max_segments)
            covered = (complete - held) * config.segment_size
            if compressed:
                assert oldest == covered
                assert batch.lengths[row][:-1].sum() == held * config.segment_size
                assert batch.lengths[row][-1] >= target - complete * config.segment_size
            elif config.mode == "full" and not recent_only:
                assert oldest <= covered
            else:
                assert oldest <= max(0, min(complete * config.segment_size, target - 1))
    assert seen == wanted


@given(configs, st.integers(2, 40), st.booleans(), st.integers(0, 2**31))
def test_training_windows(config, train_end, vary, seed):
    count = 40
    chance = np.random.default_rng(seed).random((count, 5))
    user, ends = np.zeros(count, np.int64), np.full(count, train_end)
    cut = windows.train_cuts(user, ends, config, chance, vary_recent=vary)
    batch = lay_out(cut, config, [train_end + 20])  # events behind train_end must stay unseen
    layout = SegmentLayout.from_config(config)
    for row in range(count):
        items, weights = batch.items[row], batch.weights[row]
        laid = items[items > 0]
        assert (np.diff(laid) == 1).all()
        assert laid[-1] % 100 < train_end
        # every laid out event but the first is a target, and has a predictor
        assert items[weights > 0].tolist() == laid[1:].tolist()
        assert len(laid) >= 2
        valid = layout.valid(batch.lengths[row][None])[0]
        assert set(np.flatnonzero(weights)) <= set(layout.target_slots[valid[layout.predictors]])
        *segments, recent = batch.lengths[row].tolist()
        assert segments == sorted(segments)
        assert set(segments) <= {0, config.segment_size}
        assert recent <= layout.segments[-1][0]
        if config.mode == "compressed":
            assert recent >= min(config.recent_min, train_end - 1)
            if not vary and any(segments):
                assert laid[0] % 100 % config.segment_size == 0
        elif train_end - 1 <= layout.num_items:
            assert len(laid) == train_end


def test_segments_of_random_length():
    """Short segments leave gaps: no event is lost or doubled, tokens know the last one's time."""
    config = LayoutConfig(segment_size=5, tokens=1, max_segments=3, recent_min=1)
    layout = SegmentLayout.from_config(config)
    chance = np.random.default_rng(0).random((400, 6))
    sizes = windows.segment_sizes(config, chance[:, 5])
    assert set(sizes.tolist()) == {3, 4, 5}
    user, ends = np.zeros(400, np.int64), np.full(400, 60)
    cut = windows.train_cuts(user, ends, config, chance, vary_recent=True, sizes=sizes)
    batch = lay_out(cut, config, [80], sizes=sizes)
    assert (batch.lengths[:, :-1].max(1) <= sizes).all()
    for row in range(400):
        laid = batch.items[row][batch.items[row] > 0]
        assert (np.diff(laid) == 1).all()
        assert laid[-1] % 100 < 60
        assert (batch.items[row] * batch.weights[row]).sum() == laid[1:].sum()
        valid = layout.valid(batch.lengths[row][None])[0]
        predicted = layout.target_slots[valid[layout.predictors]]
        assert set(np.flatnonzero(batch.weights[row])) <= set(predicted.tolist())
        for segment, have in enumerate(batch.lengths[row][:-1]):
            own = slice(5 * segment, 5 * segment + 5)
            newest = 10 * batch.items[row][own].max()
            assert have in (0, sizes[row])
            assert batch.times[row][own][-1] == newest


def test_short_histories_are_taken_whole_without_vary():
    chance = np.random.default_rng(0).random((50, 5))
    ends = np.arange(2, 11).repeat(6)[:50]
    cut = windows.train_cuts(np.zeros(50, np.int64), ends, SMALL, chance, vary_recent=False)
    batch = lay_out(cut, SMALL, [11])
    assert ((batch.items > 0).sum(1) == ends).all()


@pytest.mark.parametrize("mode", ["compressed", "full"])
def test_long_histories_are_covered_evenly(mode):
    config = LayoutConfig(mode=mode, segment_size=10, tokens=1, max_segments=3, recent_min=1)
    length, count = 200, 4000
    chance = np.random.default_rng(0).random((count, 5))
    cut = windows.train_cuts(
        np.zeros(count, np.int64), np.full(count, length), config, chance, vary_recent=False
    )
    times = np.zeros(length)
    for first, stop in zip(cut.first, cut.stop, strict=True):
        times[first:stop] += 1
    assert times[0] == 0
    if mode == "full":
        # 1/6 of the windows hold any event; the ends, which every clipped window holds, more
        assert times[1:].min() > 0.9 * count / 6
    assert times[1:].min() > 0
    assert times[-1] > times[60:140].mean() * 0.9


def test_varied_windows_meet_every_age_and_length():
    config = LayoutConfig(segment_size=4, tokens=1, max_segments=3, recent_min=2)
    chance = np.random.default_rng(0).random((3000, 5))
    user = np.zeros(3000, np.int64)
    cut = windows.train_cuts(user, np.full(3000, 100), config, chance, vary_recent=True)
    met = {(int(c), int(r)) for c, r in zip(cut.segments, cut.recent, strict=True)}
    assert {r for c, r in met if c == 3} == {2, 3, 4, 5}
    assert {c for c, _ in met} == {0, 1, 2, 3}
    # half of the windows and more take what fits
    assert ((cut.segments == 3) & (cut.recent == 5)).mean() > 0.5


def test_windows_per_user():
    layout = SegmentLayout.from_config(SMALL)
    assert layout.num_items == 9
    counts = windows.count_windows(np.asarray([0, 1, 2, 10, 11, 100]), layout)
    assert counts.tolist() == [0, 0, 1, 1, 2, 11]
