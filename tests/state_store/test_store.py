"""What the store promises, in one process."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxrec.state_store import writer
from tests.state_store import standin
from tests.state_store.standin import SPEC, check_whole, columns, columns_after, create, reopen


@pytest.fixture
def store(tmp_path):
    with create(tmp_path / "store") as opened:
        yield opened


def test_rows_come_back(store, tmp_path):
    users = [*range(50), *(f"user-{i}" for i in range(50)), "", -(2**63), 2**63 - 1, "5"]
    store.write(users, columns(users, 3))
    for place in (store, reopen(tmp_path / "store")):
        rows, known = place.read(users)
        assert known.all()
        assert (check_whole(users, known, rows) == 3).all()
    rows, known = store.read([5, "x", "5", 5, 77])
    assert known.tolist() == [True, False, True, True, False]
    check_whole([5, "x", "5", 5, 77], known, rows)
    assert not rows["version"][1]


def test_nothing_to_do(store):
    store.write([], columns([]))
    store.update([], lambda ids, rows, known: pytest.fail("asked about nobody"))
    assert store.delete([]).tolist() == []
    rows, known = store.read([])
    assert rows["x"].shape == (0, *SPEC.fields[0].shape)
    assert known.shape == (0,)
    assert list(store.iterate()) == []
    assert [s.users for s in store.stat()] == [0, 0, 0]


def test_the_last_row_of_a_repeated_user_counts(store):
    rows = columns([1, 2, 1])
    rows["version"] = np.array([1, 2, 3])
    for i in range(3):
        rows["x"][i] = standin.content([1, 2, 1][i], i + 1)
    for durable in (True, False):
        store.write([1, 2, 1], rows, durable=durable)
        got, known = store.read([1, 2])
        assert check_whole([1, 2], known, got).tolist() == [3, 2]


def test_update_sees_old_rows_and_new_users(store):
    store.write([1, 2], columns([1, 2], 4))

    def bump(ids, rows, known):
        assert known.tolist() == [user in (1, 2) for user in ids]
        assert (rows["version"][~known] == 0).all()
        return columns(ids, 5)

    store.update([2, 3, 1], bump)
    rows, known = store.read([1, 2, 3])
    assert check_whole([1, 2, 3], known, rows).tolist() == [5, 5, 5]
    with pytest.raises(ValueError, match="a user occurs twice"):
        store.update([1, 1], bump)


def test_a_failing_update_changes_nothing(store):
    store.write(range(20), columns(range(20), 1))

    def broken(ids, rows, known):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        store.update(range(20), broken)
    with pytest.raises(ValueError, match="rows for 20 users"):
        store.update(range(20), lambda ids, rows, known: columns(ids[1:]))
    rows, known = store.read(range(20))
    assert (check_whole(range(20), known, rows) == 1).all()
    store.update(range(20), lambda ids, rows, known: columns(ids, 2))  # the store still works


def test_delete_tells_who_existed(store, tmp_path):
    store.write([1, 2], columns([1, 2]))
    assert store.delete([1, 9, 1]).tolist() == [True, False, True]
    assert store.read([1, 2])[1].tolist() == [False, True]
    assert reopen(tmp_path / "store").read([1, 2])[1].tolist() == [False, True]
    assert sum(s.users for s in store.stat()) == 1
    assert store.delete([1]).tolist() == [False]


def test_staged_rows_are_seen_by_their_writer_until_flush(store, tmp_path):
    reader = reopen(tmp_path / "store")
    store.write([1, 2], columns([1, 2], 1))
    store.write([2, 3], columns([2, 3], 2), durable=False)
    rows, known = store.read([1, 2, 3])
    assert check_whole([1, 2, 3], known, rows).tolist() == [1, 2, 2]
    assert reader.read([1, 2, 3])[0]["version"].tolist() == [1, 1, 0]
    store.flush()
    assert reader.read([1, 2, 3])[0]["version"].tolist() == [1, 2, 2]


@pytest.mark.parametrize(
    "act", ["update", "delete", "write", "stat", "iterate", "compact", "close"]
)
def test_everything_that_looks_at_rows_flushes(store, tmp_path, act):
    store.write([1], columns([1], 7), durable=False)
    {
        "update": lambda: store.update([2], lambda ids, rows, known: columns(ids)),
        "delete": lambda: store.delete([2]),
        "write": lambda: store.write([2], columns([2])),
        "stat": store.stat,
        "iterate": lambda: list(store.iterate()),
        "compact": store.compact,
        "close": store.close,
    }[act]()
    assert reopen(tmp_path / "store").read([1])[0]["version"].tolist() == [7]


def test_many_staged_rows_are_committed_on_the_way(store, tmp_path, monkeypatch):
    monkeypatch.setattr(writer, "COMMIT_BYTES", 10 * SPEC.row_bytes)
    store.write(range(8), columns(range(8)), durable=False)
    assert not reopen(tmp_path / "store").read(range(8))[1].any()
    store.write(range(8, 16), columns(range(8, 16)), durable=False)
    assert reopen(tmp_path / "store").read(range(16))[1].all()
    store.write(range(100), columns(range(100), 1))  # parts of 10
    store.update(range(100), lambda ids, rows, known: columns(ids, 2))
    assert (store.read(range(100))[0]["version"] == 2).all()


def test_rows_of_a_failed_block_are_not_written(tmp_path):
    def fail():
        with create(tmp_path / "s") as store:
            store.write([1], columns([1]), durable=False)
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert not reopen(tmp_path / "s").read([1])[1].any()


@given(st.data())
@settings(max_examples=15)
def test_a_store_is_a_dictionary(tmp_path_factory, data):
    """Any sequence of calls leaves what a dict would hold."""
    users = [0, 1, "1", "a", -5, 12345678901234]
    some = st.lists(st.sampled_from(users), unique_by=lambda x: (type(x), x), max_size=6)
    acts = st.sampled_from(["write", "stage", "update", "delete", "compact", "reopen"])
    where = tmp_path_factory.mktemp("model") / "s"
    store, model = create(where, 2), {}
    for version, act in enumerate(data.draw(st.lists(acts, max_size=10)), 1):
        chosen = data.draw(some)
        if act in ("write", "stage"):
            store.write(chosen, columns(chosen, version), durable=act == "write")
            model |= dict.fromkeys(chosen, version)
        elif act == "update":
            store.update(chosen, lambda ids, rows, _: columns_after(ids, rows))
            model |= {user: model.get(user, 0) + 1000 for user in chosen}
        elif act == "delete":
            assert store.delete(chosen).tolist() == [user in model for user in chosen]
            model = {user: v for user, v in model.items() if user not in chosen}
        elif act == "compact":
            store.compact()
        else:
            store.close()
            store = reopen(where, mode="w")
        rows, known = store.read(users)
        assert known.tolist() == [user in model for user in users]
        assert check_whole(users, known, rows).tolist() == [model.get(u, 0) for u in users]
    listed = {
        user: v
        for ids, rows in store.iterate(2)
        for user, v in zip(ids, rows["version"], strict=True)
    }
    assert listed == model
    assert sum(s.users for s in store.stat()) == len(model)
    store.close()


def test_an_update_with_an_idempotency_key_is_applied_once(tmp_path):
    users = list(range(40))
    updated_counts = []

    def later(ids, rows, known):
        updated_counts.append(len(ids))
        return columns_after(ids, rows)

    with create(tmp_path / "s", 2) as store:
        half = [user for user in users if store.shard_of([user])[0] == 0]
        store.update(half, later, idempotency_key=("a", 0))  # as if killed between the shards
        store.update(users, later, idempotency_key=("a", 0))
        store.update(users, later, idempotency_key=("a", 0))
        assert updated_counts == [len(half), len(users) - len(half)]
        store.compact()
        store.update(users, later, idempotency_key=("a", 0))
        assert updated_counts[2:] == []
        store.update(users, later, idempotency_key=("a", 1))
        for source in "bcd":  # three are remembered
            store.update(users, later, idempotency_key=(source, 0))
        store.update(users, later, idempotency_key=("b", 0))
        rows, known = store.read(users)
        assert (check_whole(users, known, rows) == 5000).all()
        store.update(users, later, idempotency_key=("a", 1))
        assert (store.read(users)[0]["version"] == 6000).all()

        def wrong(ids, rows, known):
            raise KeyError

        with pytest.raises(KeyError):
            store.update(users, wrong, idempotency_key=("e", 0))
        store.update(users, later, idempotency_key=("e", 0))  # a failed one is not recorded
        assert (store.read(users)[0]["version"] == 7000).all()
        assert store.owns(users).all()
    assert not reopen(tmp_path / "s").owns(users).any()
    with reopen(tmp_path / "s", mode="w") as store:
        store.update(users, later, idempotency_key=("e", 0))
        assert (store.read(users)[0]["version"] == 7000).all()
