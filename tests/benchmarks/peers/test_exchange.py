"""Events, targets and inputs as the peers get them, against those of the package."""

import numpy as np
import pytest

from benchmarks.peers import exchange
from benchmarks.peers.exchange import Targets
from jaxrec.data import splits
from tests.benchmarks.peers import standin


@pytest.mark.parametrize("split", exchange.SPLITS)
def test_targets_are_those_of_the_package(split):
    events = standin.events()
    bounds = splits.Boundaries(events.train_end, events.validation_end)
    first, stop = splits.target_range(bounds, events.lengths, split)
    expected = [
        (user, position, int(events.history(user)[position]))
        for user in range(len(first))
        for position in range(first[user], stop[user])
    ]
    found = exchange.targets(events, split)
    assert list(zip(*(c.tolist() for c in found), strict=True)) == expected
    some = exchange.targets(events, split, np.asarray([3, 1]))
    assert some.user.tolist() == [user for user, _, _ in expected if user in (1, 3)]


def test_a_split_that_is_none():
    with pytest.raises(ValueError, match="validation, test"):
        exchange.targets(standin.events(), "train")


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("length", [4, 50])
def test_windows_end_right_before_their_targets(shared, length):
    events = standin.events()
    wanted = exchange.targets(events, "test")
    windows = exchange.windows(events, wanted, length, shared)
    assert len(windows.items) == (6 if shared else len(wanted.user))
    for number, (user, position, _) in enumerate(zip(*wanted, strict=True)):
        row, slot = windows.row[number], windows.slot[number]
        past = events.history(user)[:position]
        seen = windows.items[row, : slot + 1]
        seen = seen[seen > 0]
        # a shared row begins `length` events before its last target
        room = length - (0 if not shared else length - 1 - slot)
        assert seen.tolist() == past[-room:].tolist()
        assert windows.times[row, slot + 1] == events.times[events.offsets[user] + position]


def test_events_that_a_model_cannot_read_are_left_out():
    events = standin.events()
    wanted = exchange.targets(events, "test")
    known = np.ones(events.num_items + 1, bool)
    known[[2, 5]] = False
    windows = exchange.windows(events, wanted, 50, True, known)
    for number, (user, position, _) in enumerate(zip(*wanted, strict=True)):
        past = events.history(user)[:position]
        seen = windows.items[windows.row[number], : windows.slot[number] + 1]
        assert seen[seen > 0].tolist() == past[known[past]].tolist()


def test_a_user_without_a_known_item_has_an_empty_row():
    events = standin.events(users=1)
    known = np.zeros(events.num_items + 1, bool)
    windows = exchange.windows(events, exchange.targets(events, "test"), 5, True, known)
    assert not windows.items.any()
    assert (windows.slot == 4).all()


def test_a_row_too_short_for_its_targets_is_refused():
    events = standin.events(users=1, holdout=3)
    wanted = exchange.targets(events, "test")
    with pytest.raises(ValueError, match="length=2"):
        exchange.windows(events, wanted, 2, True)
    assert exchange.windows(events, wanted, 2, False).items.shape == (3, 2)


def test_training_events_end_where_validation_starts():
    events = standin.events()
    user, item, time = exchange.training(events)
    for one in range(6):
        expected = events.history(one)[: events.train_end[one]]
        assert item[user == one].tolist() == expected.tolist()
        assert (np.diff(time[user == one]) > 0).all()


def test_files_hold_what_was_put_into_them(tmp_path):
    events = standin.events()
    file = tmp_path / "x" / exchange.EVENTS
    exchange.save_events(file, events)
    again = exchange.load_events(file)
    assert again.num_items == events.num_items
    assert again.digest == "d1"
    for a, b in zip(events, again, strict=True):
        np.testing.assert_array_equal(a, b)
    with pytest.raises(SystemExit, match=r"benchmarks\.peers\.export"):
        exchange.load_events(tmp_path / "missing.npz")
    wanted = exchange.targets(events, "test")
    exchange.save_cell(tmp_path / "c", wanted, {"rank": wanted.item}, {"seed": 3})
    facts, arrays = exchange.load_cell(tmp_path / "c")
    assert facts == {"seed": 3}
    assert Targets(arrays["user"], arrays["position"], arrays["item"])[2].tolist() == (
        wanted.item.tolist()
    )
