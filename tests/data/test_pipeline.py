import itertools

import numpy as np
import pytest

from jaxrec.config import DataConfig, LayoutConfig, SyntheticConfig
from jaxrec.data import prepare, windows
from jaxrec.data.pipeline import eval_batches, train_batches
from jaxrec.errors import DataError
from jaxrec.layout import SegmentLayout
from jaxrec.types import Batch

LAYOUT = LayoutConfig(segment_size=8, tokens=2, max_segments=2, recent_min=1)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    config = DataConfig(
        dataset="synthetic",
        synthetic=SyntheticConfig(users=30, items=40, events=60, gap=20),
        min_item_events=1,
        holdout=3,
    )
    return prepare(config, tmp_path_factory.mktemp("data"))


def take(count, *args, **kwargs):
    return list(itertools.islice(train_batches(*args, **kwargs), count))


def same(one, other):
    pairs = zip(one, other, strict=True)
    return all(np.array_equal(a, b) for left, right in pairs for a, b in zip(left, right))  # noqa: B905


def test_batches_have_the_layouts_shape(data):
    (batch,) = take(1, data, LAYOUT, batch_size=4, seed=0)
    assert isinstance(batch, Batch)
    layout = SegmentLayout.from_config(LAYOUT)
    assert batch.items.shape == batch.weights.shape == (4, layout.num_items + 1)
    assert batch.lengths.shape == (4, layout.num_segments)
    assert (batch.user >= 0).all()


@pytest.mark.parametrize("mode", ["compressed", "full", "recent"])
def test_rows_are_the_users_training_events(data, mode):
    config = LayoutConfig(mode, segment_size=8, tokens=2, max_segments=2)
    for batch in take(10, data, config, batch_size=4, seed=0):
        for row in range(4):
            items, times = data.histories.user(batch.user[row])
            end = data.boundaries.train_end[batch.user[row]]
            laid = batch.items[row] > 0
            start = batch.history[row] - 1
            events = slice(start, start + laid.sum())
            assert events.stop <= end
            assert (batch.items[row][laid] == items[events]).all()
            assert (batch.times[row][laid] == times[events]).all()


def test_resuming_at_a_step_equals_running_to_it(data):
    whole = take(7, data, LAYOUT, batch_size=4, seed=3)
    assert same(whole[4:], take(3, data, LAYOUT, batch_size=4, seed=3, start_step=4))
    far = take(1, data, LAYOUT, batch_size=4, seed=3, start_step=10**9)
    assert (far[0].user >= 0).all()


def test_seed_decides(data):
    whole = take(3, data, LAYOUT, batch_size=4, seed=3)
    assert same(whole, take(3, data, LAYOUT, batch_size=4, seed=3))
    assert not same(whole, take(3, data, LAYOUT, batch_size=4, seed=4))


def test_vary_recent_changes_windows_not_order(data):
    vary = take(5, data, LAYOUT, batch_size=4, seed=3)
    fixed = take(5, data, LAYOUT, batch_size=4, seed=3, vary_recent=False)
    assert not same(vary, fixed)
    assert all((a.user == b.user).all() for a, b in zip(vary, fixed, strict=True))


def test_vary_segments_cuts_segments_short_in_half_of_the_windows(data):
    vary = take(5, data, LAYOUT, batch_size=8, seed=3, vary_segments=True)
    assert same(vary, take(5, data, LAYOUT, batch_size=8, seed=3, vary_segments=True, workers=2))
    lengths = np.concatenate([batch.lengths[:, :-1] for batch in vary])
    size = LAYOUT.segment_size
    assert {0, size} < set(lengths.reshape(-1).tolist())
    whole = np.concatenate([b.lengths[:, :-1] for b in take(5, data, LAYOUT, batch_size=8, seed=3)])
    assert set(whole.reshape(-1).tolist()) <= {0, size}


@pytest.mark.parametrize("workers", [1, 3])
def test_threads_do_not_change_batches(data, workers):
    alone = take(20, data, LAYOUT, batch_size=4, seed=0, workers=0, start_step=5)
    assert same(alone, take(20, data, LAYOUT, batch_size=4, seed=0, workers=workers, start_step=5))


def test_worker_processes_do_not_change_batches(data):
    alone = take(6, data, LAYOUT, batch_size=4, seed=0, workers=0, start_step=5)
    assert same(
        alone, take(6, data, LAYOUT, batch_size=4, seed=0, worker_processes=2, start_step=5)
    )


@pytest.mark.parametrize("processes", [2, 4])
def test_processes_share_the_global_batch(data, processes):
    whole = take(5, data, LAYOUT, batch_size=8, seed=1, start_step=2)
    parts = [
        take(
            5,
            data,
            LAYOUT,
            batch_size=8,
            seed=1,
            start_step=2,
            process_index=p,
            process_count=processes,
        )
        for p in range(processes)
    ]
    joined = [Batch(*map(np.concatenate, zip(*step, strict=True))) for step in zip(*parts)]  # noqa: B905
    assert same(whole, joined)


@pytest.mark.parametrize("batch_size", [3, 5])
def test_an_epoch_holds_every_window_once(data, batch_size):
    counts = windows.count_windows(data.boundaries.train_end, SegmentLayout.from_config(LAYOUT))
    total = int(counts.sum())
    steps = -(-2 * total // batch_size)
    users = np.concatenate(
        [b.user for b in take(steps, data, LAYOUT, batch_size=batch_size, seed=0)]
    )
    epochs = users[:total], users[total : 2 * total]
    for epoch in epochs:
        assert (np.bincount(epoch, minlength=data.num_users) == counts).all()
    assert not np.array_equal(*epochs)


def test_batch_that_processes_cannot_share(data):
    with pytest.raises(ValueError, match="batch_size=5, process_index=0, process_count=2"):
        train_batches(data, LAYOUT, batch_size=5, seed=0, process_count=2)


def test_no_training_events(tmp_path):
    synthetic = SyntheticConfig(users=2, items=4, events=4, gap=2)
    config = DataConfig(
        dataset="synthetic", synthetic=synthetic, min_item_events=1, min_user_events=1
    )
    data = prepare(config, tmp_path)
    nothing = data.boundaries._replace(train_end=np.ones(data.num_users, np.int64))
    object.__setattr__(data, "boundaries", nothing)
    with pytest.raises(DataError, match="no user has two training events"):
        train_batches(data, LAYOUT, batch_size=1, seed=0)


@pytest.mark.parametrize("split", ["validation", "test"])
@pytest.mark.parametrize("recent_only", [False, True])
@pytest.mark.parametrize("mode", ["compressed", "full", "recent"])
def test_evaluation_holds_every_target_once(data, mode, split, recent_only):
    config = LayoutConfig(mode, segment_size=8, tokens=2, max_segments=2)
    seen = []
    for batch in eval_batches(data, config, split=split, batch_size=7, recent_only=recent_only):
        assert batch.items.shape[0] == 7
        for row in np.flatnonzero(batch.user >= 0):
            user = batch.user[row]
            items, times = data.histories.user(user)
            laid = np.flatnonzero(batch.items[row])
            targets = np.flatnonzero(batch.weights[row])
            first = batch.history[row] - np.searchsorted(laid, targets[0])
            events = slice(first, first + len(laid))
            assert (batch.items[row][laid] == items[events]).all()
            assert (batch.times[row][laid] == times[events]).all()
            seen += [(user, first + np.searchsorted(laid, slot)) for slot in targets]
            if recent_only:
                assert not batch.lengths[row][:-1].any()
    ends = data.boundaries.validation_end
    wanted = [
        (user, event)
        for user in range(data.num_users)
        for event in (
            range(ends[user], data.lengths[user])
            if split == "test"
            else range(data.boundaries.train_end[user], ends[user])
        )
    ]
    assert len(wanted) == 3 * data.num_users
    assert seen == wanted


def test_evaluation_of_chosen_users_and_shards(data):
    chosen = np.asarray([7, 3, 11])
    batches = list(eval_batches(data, LAYOUT, split="test", batch_size=4, users=chosen))
    users = np.concatenate([batch.user for batch in batches])
    assert list(dict.fromkeys(users[users >= 0].tolist())) == [7, 3, 11]
    assert len(users) % 4 == 0
    shards = [
        list(
            eval_batches(data, LAYOUT, split="test", batch_size=4, process_index=p, process_count=2)
        )
        for p in range(2)
    ]
    joined = [Batch(*map(np.concatenate, zip(*step, strict=True))) for step in zip(*shards)]  # noqa: B905
    assert same(list(eval_batches(data, LAYOUT, split="test", batch_size=4)), joined)


def test_more_segments_for_the_masked_forward(data):
    batch = next(eval_batches(data, LAYOUT, split="test", batch_size=4, num_segments=6))
    assert batch.lengths.shape == (4, 7)
    assert (batch.lengths[:, :-1] > 0).sum(1).max() > 2
