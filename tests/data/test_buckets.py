"""Batches of users of similar length: what fits, how often, in which order."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxrec.config import DataConfig, LayoutConfig, SyntheticConfig
from jaxrec.data import buckets, prepare, windows
from jaxrec.data.pipeline import train_batches
from jaxrec.layout import SegmentLayout
from jaxrec.types import Batch

MODES = ["compressed", "full", "recent"]
configs = st.builds(
    LayoutConfig,
    mode=st.sampled_from(MODES),
    segment_size=st.integers(2, 6),
    tokens=st.just(1),
    max_segments=st.integers(1, 5),
    recent_min=st.integers(0, 3),
)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    config = DataConfig(
        dataset="synthetic",
        synthetic=SyntheticConfig(users=60, items=40, events=30, gap=10),
        min_item_events=1,
        holdout=1,
    )
    return prepare(config, tmp_path_factory.mktemp("data"))


def layout_of(mode):
    return LayoutConfig(mode, segment_size=8, tokens=2, max_segments=5)


def take(count, data, mode="compressed", **arguments):
    arguments = {"batch_size": 4, "seed": 3, "length_buckets": 4, **arguments}
    return list(itertools.islice(train_batches(data, layout_of(mode), **arguments), count))


def same(one, other):
    pairs = zip(one, other, strict=True)
    return all(np.array_equal(a, b) for left, right in pairs for a, b in zip(left, right))  # noqa: B905


@given(
    config=configs,
    count=st.integers(1, 8),
    vary_recent=st.booleans(),
    vary_segments=st.booleans(),
    data=st.data(),
)
def test_every_window_that_can_be_drawn_fits_its_bucket(
    config, count, vary_recent, vary_segments, data
):
    train_end = np.asarray(data.draw(st.lists(st.integers(0, 60), min_size=1, max_size=12)))
    planned = buckets.plan(
        train_end, config, batch_size=2, count=count, vary_segments=vary_segments
    )
    slots = [bucket.slots for bucket in planned]
    assert slots == sorted(set(slots))
    assert len(slots) <= count
    members = np.concatenate([np.zeros(0, int), *(bucket.users for bucket in planned)])
    assert sorted(members) == np.flatnonzero(train_end > 1).tolist()
    random = np.random.default_rng(data.draw(st.integers(0, 1 << 30)))
    draws = [0.0, 0.24, 0.49, 0.5, 0.999999]
    for bucket in planned:
        user = np.repeat(bucket.users.astype(np.int64), 40)
        # random draws, and the corners of every decision
        uniform = random.random((len(user), windows.NUM_DRAWS))
        uniform[::2] = random.choice(draws, uniform[::2].shape)
        sizes = None
        if vary_segments and config.mode == "compressed":
            sizes = windows.segment_sizes(config, uniform[:, windows.SEGMENT_SIZE])
        cut = windows.train_cuts(
            user, train_end[user], config, uniform, vary_recent=vary_recent, sizes=sizes
        )
        layout = SegmentLayout.from_config(config).shortened(bucket.slots)
        assert (cut.segments <= layout.num_segments - 1).all()
        assert (cut.recent <= layout.segments[-1][0]).all()


def test_a_user_is_in_the_shortest_rows_that_hold_his_windows():
    config = LayoutConfig(segment_size=10, tokens=1, max_segments=4)
    events = np.asarray([2, 11, 12, 21, 22, 41, 42, 500])
    assert [
        windows.most_slots(np.asarray([e]), config, vary_segments=False)[0] for e in events
    ] == [*(10, 10, 20, 20, 30, 40, 50, 50)]
    # 11 inputs are three segments of 5 and one event
    short = windows.most_slots(np.asarray([12, 17]), config, vary_segments=True)
    assert short.tolist() == [30, 40]
    full = LayoutConfig("full", segment_size=10, tokens=1, max_segments=4)
    assert windows.most_slots(events, full, vary_segments=True).tolist() == [
        *(1, 10, 11, 20, 21, 40, 41, 50)
    ]


def test_sizes_of_rows():
    config = LayoutConfig(segment_size=10, tokens=1, max_segments=4)
    assert buckets.capacities(config, 1) == [50]
    assert buckets.capacities(config, 2) == [30, 50]
    assert buckets.capacities(config, 8) == [10, 20, 30, 40, 50]
    full = LayoutConfig("full", segment_size=10, tokens=1, max_segments=4)
    assert buckets.capacities(full, 1) == [50]
    assert buckets.capacities(full, 4) == [13, 25, 38, 50]
    recent = LayoutConfig("recent", segment_size=3, tokens=1, max_segments=4)
    assert buckets.capacities(recent, 8) == [1, 2, 3]


def test_buckets_with_less_than_a_batch_are_joined():
    config = LayoutConfig("full", segment_size=10, tokens=1, max_segments=3)

    def sizes(train_end):
        made = buckets.plan(
            np.asarray(train_end), config, batch_size=4, count=4, vary_segments=False
        )
        return [(bucket.slots, bucket.rows, bucket.num_windows) for bucket in made]

    assert sizes([5] * 16 + [40] * 4) == [(10, 16, 16), (40, 4, 4)]
    assert sizes([5] * 15 + [40] * 4) == [(40, 4, 19)]
    assert sizes([5] * 16 + [40] * 3) == [(40, 4, 19)]
    assert sizes([5] * 16 + [15] * 7 + [25] * 4) == [(10, 16, 16), (30, 4, 11)]
    assert sizes([5] * 3) == [(10, 16, 3)]
    assert sizes([1, 0]) == []


@pytest.mark.parametrize("mode", ["compressed", "full"])
def test_batches_are_as_long_and_as_many_as_their_bucket(data, mode):
    whole = SegmentLayout.from_config(layout_of(mode))
    seen = set()
    for batch in take(40, data, mode):
        slots = batch.items.shape[1] - 1
        layout = whole.shortened(slots)
        seen.add(slots)
        assert batch.lengths.shape == (len(batch.user), layout.num_segments)
        assert len(batch.user) == 4 * (whole.num_items // slots)
        for row in range(len(batch.user)):
            items, times = data.histories.user(batch.user[row])
            laid = batch.items[row] > 0
            first = batch.history[row] - 1
            events = slice(first, first + laid.sum())
            assert laid.sum() == batch.lengths[row].sum() + 1
            assert events.stop <= data.boundaries.train_end[batch.user[row]]
            assert (batch.items[row][laid] == items[events]).all()
            assert (batch.times[row][laid] == times[events]).all()
    assert len(seen) > 1


@pytest.mark.parametrize("mode", ["compressed", "full"])
def test_every_window_occurs_equally_often(data, mode):
    config = layout_of(mode)
    train_end = data.boundaries.train_end
    planned = buckets.plan(train_end, config, batch_size=4, count=4, vary_segments=False)
    turns = buckets.turns(planned)
    assert len(turns) > 1
    number = windows.count_windows(train_end, SegmentLayout.from_config(config))
    batches = take(sum(turns), data, mode)
    seen = np.bincount(np.concatenate([b.user for b in batches]), minlength=data.num_users)
    # the frequency of the windows of a bucket by the share of its batches, one by rounding its end
    epochs = sum(t * b.rows for t, b in zip(turns, planned, strict=True)) / number.sum()
    for bucket, count in zip(planned, turns, strict=True):
        assert count * bucket.rows / bucket.num_windows == pytest.approx(epochs, rel=1 / 16)
        expected = count * bucket.rows / bucket.num_windows * number[bucket.users]
        assert (np.abs(seen[bucket.users] - expected) < number[bucket.users] + 1e-9).all()


@pytest.mark.parametrize("counts", [(3, 1, 5), (20, 17)])
def test_a_cycle_has_the_batches_of_every_bucket_in_turn(counts):
    total = sum(counts)
    found = [buckets.turn(number, counts, 7) for number in range(3 * total)]
    for cycle in range(3):
        part = found[cycle * total : (cycle + 1) * total]
        for bucket, count in enumerate(counts):
            numbers = [turn.number for turn in part if turn.bucket == bucket]
            assert numbers == list(range(cycle * count, (cycle + 1) * count))
    orders = {tuple(turn.bucket for turn in found[c * total : (c + 1) * total]) for c in range(3)}
    assert len(orders) == 3
    assert found != [buckets.turn(number, counts, 8) for number in range(3 * total)]


@pytest.mark.parametrize("vary_segments", [False, True])
def test_starting_anywhere_continues_the_same_batches(data, vary_segments):
    whole = take(30, data, vary_segments=vary_segments)
    for start in (1, 7, 29):
        late = take(30 - start, data, vary_segments=vary_segments, start_step=start)
        assert same(whole[start:], late)
    (far,) = take(1, data, start_step=10**9)
    assert (far.user >= 0).all()


def test_seed_decides(data):
    assert not same(take(3, data, seed=3), take(3, data, seed=4))


def test_processes_share_the_global_batch(data):
    whole = take(20, data)
    parts = [take(20, data, process_index=p, process_count=2) for p in range(2)]
    joined = [Batch(*map(np.concatenate, zip(*step, strict=True))) for step in zip(*parts)]  # noqa: B905
    assert same(whole, joined)


def test_readers_do_not_change_batches(data):
    alone = take(12, data, workers=0)
    assert same(alone, take(12, data, workers=3))
    assert same(alone, take(12, data, worker_processes=2))


def test_draws_of_two_buckets_are_not_the_same(data):
    """Examples at one position of two sequences: their windows are cut by different numbers."""
    from jaxrec.data.pipeline import _TrainBatch

    make = _TrainBatch(None, layout_of("full"), None, (), [], (), 3, True, False, 0, 1)
    draws = {tuple(make._uniform(bucket, position)) for bucket in range(3) for position in range(9)}
    assert len(draws) == 27
