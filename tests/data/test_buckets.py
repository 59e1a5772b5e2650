"""Batches of users of similar length: what fits, how often, in which order."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxrec.config import DataConfig, LayoutConfig, SyntheticConfig
from jaxrec.data import batch_plan, buckets, prepare, windows
from jaxrec.data.batch_plan import BatchPlan
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
    slots = [bucket.sizes[-1].slots for bucket in planned]
    assert slots == sorted(slots)
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
        whole, size = SegmentLayout.from_config(config), bucket.sizes[-1]
        layout = whole.shortened(size.slots, size.complete + 1)
        assert (cut.segments <= layout.num_segments - 1).all()
        assert (cut.recent <= layout.segments[-1][0]).all()
        for segments, recent in zip(cut.segments.tolist(), cut.recent.tolist(), strict=True):
            own = bucket.size_of(segments, recent)
            assert segments <= own.complete
            assert recent <= own.recent
            assert own.slots == own.complete * config.segment_size + own.recent or not segments


def test_most_that_a_window_of_a_user_holds():
    config = LayoutConfig(segment_size=10, tokens=1, max_segments=4)
    events = np.asarray([2, 11, 12, 21, 22, 41, 42, 500])
    complete, recent = windows.most(events, config, vary_segments=False)
    assert complete.tolist() == [0, 0, 1, 1, 2, 3, 4, 4]
    assert recent.tolist() == [1, *[10] * 7]
    # 11 inputs are two segments of 5 and one event
    complete, recent = windows.most(np.asarray([5, 12, 17]), config, vary_segments=True)
    assert (complete.tolist(), recent.tolist()) == ([0, 2, 3], [4, 10, 10])
    full = LayoutConfig("full", segment_size=10, tokens=1, max_segments=4)
    complete, recent = windows.most(events, full, vary_segments=True)
    assert not complete.any()
    assert recent.tolist() == [1, 10, 11, 20, 21, 40, 41, 50]


def test_sizes_of_rows():
    def sizes(config, count):
        return [tuple(size) for size in buckets.capacities(config, count)]

    config = LayoutConfig(segment_size=10, tokens=1, max_segments=4)
    assert sizes(config, 1) == [(4, 10, 50)]
    assert sizes(config, 2) == [(2, 10, 30), (4, 10, 50)]
    assert sizes(config, 8) == [(count, 10, 10 * count + 10) for count in range(5)]
    assert sizes(config, 10) == [
        (count, recent, 10 * count + recent) for count in range(5) for recent in (5, 10)
    ]
    full = LayoutConfig("full", segment_size=10, tokens=1, max_segments=4)
    assert sizes(full, 1) == [(0, 50, 50)]
    assert sizes(full, 4) == [(0, slots, slots) for slots in (13, 25, 38, 50)]
    recent = LayoutConfig("recent", segment_size=3, tokens=1, max_segments=4)
    assert sizes(recent, 8) == [(0, slots, slots) for slots in (1, 2, 3)]


def test_a_bucket_takes_shorter_rows_that_make_few_programs():
    config = LayoutConfig(segment_size=10, tokens=1, max_segments=4)
    made = buckets.plan(
        np.asarray([6] * 80 + [11] * 80 + [500] * 80),
        config,
        batch_size=4,
        count=10,
        vary_segments=False,
    )
    found = [[tuple(size) for size in bucket.sizes] for bucket in made]
    assert [bucket.rows for bucket in made] == [40, 20, 4]
    assert found[0] == [(0, 5, 5)]
    assert found[1] == [(0, 10, 10)]
    # half a recent window only where a batch of it would have as few rows
    assert found[2] == [
        *((0, 10, 10), (1, 10, 20), (2, 10, 30), (3, 5, 35), (3, 10, 40), (4, 5, 45), (4, 10, 50))
    ]
    assert made[2].size_of(3, 5).slots == 35
    assert made[2].size_of(0, 3).slots == 10
    assert made[2].size_of(2, 5).slots == 30


def test_buckets_with_less_than_a_batch_are_joined():
    config = LayoutConfig("full", segment_size=10, tokens=1, max_segments=3)

    def sizes(train_end):
        made = buckets.plan(
            np.asarray(train_end), config, batch_size=4, count=4, vary_segments=False
        )
        return [(bucket.sizes[-1].slots, bucket.rows, bucket.num_windows) for bucket in made]

    assert sizes([5] * 16 + [40] * 4) == [(10, 16, 16), (40, 4, 4)]
    assert sizes([5] * 15 + [40] * 4) == [(40, 4, 19)]
    assert sizes([5] * 16 + [40] * 3) == [(40, 4, 19)]
    assert sizes([5] * 16 + [15] * 7 + [25] * 4) == [(10, 16, 16), (30, 4, 11)]
    assert sizes([5] * 3) == [(10, 16, 3)]
    assert sizes([1, 0]) == []


@pytest.mark.parametrize("length_buckets", [4, 12])
@pytest.mark.parametrize("mode", ["compressed", "full"])
def test_batches_hold_histories_in_rows_of_their_size(data, mode, length_buckets):
    whole, config = SegmentLayout.from_config(layout_of(mode)), layout_of(mode)
    train_end = data.boundaries.train_end
    planned = buckets.plan(
        train_end, config, batch_size=4, count=length_buckets, vary_segments=False
    )
    allowed = {(bucket.rows, s.slots, s.complete + 1) for bucket in planned for s in bucket.sizes}
    seen = set()
    for batch in take(60, data, mode, length_buckets=length_buckets):
        slots, segments = batch.items.shape[1] - 1, batch.lengths.shape[1]
        layout = whole.shortened(slots, segments)
        seen.add((len(batch.user), slots, segments))
        # no row is so short that the whole batch would fit in less
        recents = [size.recent for bucket in planned for size in bucket.sizes]
        below = [r for r in recents if r < layout.segments[-1][0]]
        if (len(batch.user), slots - layout.segments[-1][0] + max(below, default=0), segments) in (
            allowed
        ):
            assert batch.lengths[:, -1].max() > max(below)
        for row in range(len(batch.user)):
            items, times = data.histories.user(batch.user[row])
            laid = batch.items[row] > 0
            first = batch.history[row] - 1
            events = slice(first, first + laid.sum())
            assert laid.sum() == batch.lengths[row].sum() + 1
            assert events.stop <= train_end[batch.user[row]]
            assert (batch.items[row][laid] == items[events]).all()
            assert (batch.times[row][laid] == times[events]).all()
    assert len(seen) > 1
    assert seen <= allowed
    if mode == "compressed" and length_buckets == 12:
        # fewer positions than rows of the bucket's own size would have
        assert len({slots for _, slots, _ in seen}) > len(planned)


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
@pytest.mark.parametrize("length_buckets", [4, 12])
def test_starting_anywhere_continues_the_same_batches(data, vary_segments, length_buckets):
    settings = {"vary_segments": vary_segments, "length_buckets": length_buckets}
    whole = take(60, data, **settings)
    for start in (1, 7, 59):
        late = take(60 - start, data, start_step=start, **settings)
        assert same(whole[start:], late)
    (far,) = take(1, data, start_step=10**9)
    assert (far.user >= 0).all()


def test_seed_decides(data):
    assert not same(take(3, data, seed=3), take(3, data, seed=4))


def test_batches_that_are_sorted_together_hold_every_window_once(data):
    config, train_end = layout_of("compressed"), data.boundaries.train_end
    plan = batch_plan.make(train_end, config, batch_size=4, seed=3, length_buckets=12)
    for index, bucket in enumerate(plan.buckets):
        if not plan.pooled(bucket):
            continue
        for number in (0, 5):
            pool = plan._pool(index, number)
            assert len(pool.sizes) == plan.pooled(bucket) <= batch_plan.POOL
            count = pool.rows.size
            assert sorted(pool.rows.reshape(-1)) == list(range(count))
            first = number * count
            users = bucket.users_of([plan.orders[index][first + row] for row in range(count)])
            assert (pool.cut.user == users).all()
            assert count <= max(bucket.rows, min(bucket.num_windows, batch_plan.POOL_WINDOWS))
    assert any(plan.pooled(bucket) > 1 for bucket in plan.buckets)
    many = batch_plan.make(train_end, config, batch_size=9000, seed=3, length_buckets=12)
    assert not any(plan.pooled(bucket) for bucket in many.buckets)


@pytest.mark.parametrize("length_buckets", [4, 12])
def test_processes_share_the_global_batch(data, length_buckets):
    whole = take(20, data, length_buckets=length_buckets)
    parts = [
        take(20, data, length_buckets=length_buckets, process_index=p, process_count=2)
        for p in range(2)
    ]
    joined = [Batch(*map(np.concatenate, zip(*step, strict=True))) for step in zip(*parts)]  # noqa: B905
    assert same(whole, joined)


def test_readers_do_not_change_batches(data):
    alone = take(12, data, workers=0, length_buckets=12)
    assert same(alone, take(12, data, workers=3, length_buckets=12))
    assert same(alone, take(12, data, worker_processes=2, length_buckets=12))


def test_draws_of_two_buckets_are_not_the_same():
    """Examples at one position of two sequences: their windows are cut by different numbers."""
    plan = BatchPlan(layout_of("full"), np.zeros(0), (), [], (), 3, True, False, 0, 1)
    draws = {
        plan._random(bucket, position, word=word).random()
        for bucket in range(3)
        for position in range(9)
        for word in range(2)
    }
    assert len(draws) == 54
