"""Opening: what is refused and why; places with and without locks; how much is read."""

import threading

import numpy as np
import pytest
import tensorstore as ts

from jaxrec.errors import StoreError
from jaxrec.state_store import Binding, RowSpec, UserStateStore, access, compaction, shard
from tests.state_store.standin import (
    BINDING,
    SPEC,
    check_whole,
    columns,
    columns_after,
    create,
    reopen,
)


@pytest.fixture
def store(tmp_path):
    with create(tmp_path / "store") as opened:
        yield opened


@pytest.mark.parametrize("field", ["params", "layout", "vocabulary", "encoding"])
def test_another_binding_is_refused_with_both_values(store, tmp_path, field):
    given_binding = Binding(**(BINDING.__dict__ | {field: "OTHER"}))
    stored = getattr(BINDING, field)
    message = rf"store\.json: .*\({field}: store '{stored}', given 'OTHER'\)"
    with pytest.raises(StoreError, match=message):
        UserStateStore.open(tmp_path / "store", given_binding)


def test_another_row_is_refused_with_both_shapes(store, tmp_path):
    other = RowSpec.of({"x": np.zeros((1, 3), np.float32), "version": np.zeros(1, np.int64)})
    with pytest.raises(StoreError, match=r"row field x: store .*48.*'float32'.*given \(\(3,\)"):
        UserStateStore.open(tmp_path / "store", BINDING, spec=other)
    swapped = RowSpec(SPEC.fields[::-1])
    with pytest.raises(StoreError, match=r"row order: store \['x', 'version'\], given"):
        UserStateStore.open(tmp_path / "store", BINDING, spec=swapped)


def test_any_binding_opens_for_tools(store, tmp_path):
    opened = UserStateStore.open(tmp_path / "store", None)
    assert (opened.metadata.binding, opened.spec) == (BINDING, SPEC)


def test_wrong_calls(store, tmp_path):
    with pytest.raises(StoreError, match="there already is a store"):
        create(tmp_path / "store")
    with pytest.raises(StoreError, match=r"nowhere/store\.json: missing"):
        reopen(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="num_shards=0: allowed is 1 to 4096"):
        create(tmp_path / "new", 0)
    with pytest.raises(ValueError, match="mode='a': allowed are r, w"):
        reopen(tmp_path / "store", mode="a")
    with pytest.raises(ValueError, match=r"shards=\[3\]: the store has 0 to 2"):
        reopen(tmp_path / "store", mode="w", shards=[3])
    with pytest.raises(StoreError, match="not a place for a store"):
        reopen("nosuch://place/")
    with pytest.raises(ValueError, match="3 user ids for 2 rows"):
        store.write([1, 2, 3], columns([1, 2]))


def test_a_creation_that_was_killed_is_finished(tmp_path):
    """Shards without a store around them, as long as nobody is in them."""
    create(tmp_path / "s", 3).close()
    (tmp_path / "s" / "store.json").unlink()
    with create(tmp_path / "s", 4) as store:
        store.write([1], columns([1], 1))
    (tmp_path / "s" / "store.json").unlink()
    with pytest.raises(StoreError, match="already is a shard, but no store around it"):
        create(tmp_path / "s", 4)


def test_a_reader_does_not_write(store, tmp_path):
    reader = reopen(tmp_path / "store")
    for act in (
        lambda: reader.write([1, 2], columns([1, 2])),
        lambda: reader.write([1], columns([1]), durable=False),
        lambda: reader.update([1], lambda ids, rows, known: rows),
        lambda: reader.delete([1]),
        lambda: reader.compact([0]),
    ):
        with pytest.raises(StoreError, match="not open for writing here"):
            act()


def test_only_owned_shards_are_written(store, tmp_path):
    store.close()
    with reopen(tmp_path / "store", mode="w", shards=[1]) as part:
        users = np.arange(60)
        owned = users[part.shard_of(users) == 1]
        part.write(owned, columns(owned.tolist()))
        with pytest.raises(StoreError, match=r"shard-0000[02]/: not open for writing") as caught:
            part.write(users, columns(users.tolist()))
        assert sorted(caught.value.users) == sorted(set(users.tolist()) - set(owned.tolist()))
        assert part.read(users)[1].tolist() == np.isin(users, owned).tolist()  # all are read


def test_a_second_writer_of_a_shard_is_refused(store, tmp_path):
    with pytest.raises(StoreError, match=r"writer\.lock: the shard is open for writing by process"):
        reopen(tmp_path / "store", mode="w", shards=[1])
    store.close()
    with (
        reopen(tmp_path / "store", mode="w", shards=[0]),
        reopen(tmp_path / "store", mode="w", shards=[1, 2]),
        pytest.raises(StoreError, match="shard-00000"),
    ):
        reopen(tmp_path / "store", mode="w")
    reopen(tmp_path / "store", mode="w").close()  # a refusal keeps no lock


def test_a_full_disk_can_be_opened_for_deleting(store, tmp_path, monkeypatch):
    """The holder's name in the lock is for messages alone."""
    store.close()

    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("jaxrec.state_store.lock.os.pwrite", full)
    with reopen(tmp_path / "store", mode="w") as held:
        assert held.owned == frozenset(range(3))
        with pytest.raises(StoreError, match="open for writing by another process"):
            reopen(tmp_path / "store", mode="w")


# -- places without locks ------------------------------------------------------------------------


def test_memory_store_and_two_writers_serialised_by_transactions():
    """Object stores have no locks: concurrent read-modify-writes must all count."""
    context = ts.Context()
    first = create("memory://states/", 2, context=context)
    first.write([1, 2], columns([1, 2]))
    second = reopen("memory://states/", mode="w", context=context)
    assert second.stat()[0].disk_bytes is None

    def work(store):
        for _ in range(20):
            store.update([1, 2], lambda ids, rows, known: columns_after(ids, rows))

    threads = [threading.Thread(target=work, args=(store,)) for store in (first, second)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    rows, known = first.read([1, 2])
    assert check_whole([1, 2], known, rows).tolist() == [40_000, 40_000]
    first.compact()
    rows, known = second.read([1, 2])
    assert check_whole([1, 2], known, rows).tolist() == [40_000, 40_000]
    second.write([3], columns([3]))
    assert first.read([3])[1].all()
    assert first.delete([1]).all()
    assert sum(len(ids) for ids, _ in second.iterate()) == 2


def test_a_writer_waits_for_a_compaction_elsewhere_and_says_so(monkeypatch):
    """A dead compaction on an object store is named; compact() ends it."""
    context = ts.Context()
    store = create("memory://states/", 1, context=context)
    store.write([1], columns([1], 1))
    other = reopen("memory://states/", mode="w", context=context)

    def die(*args):
        raise SystemExit

    with monkeypatch.context() as patch:
        patch.setattr(compaction, "_copy", die)
        patch.setattr(shard.Shard, "remove_generation", lambda *args: None)
        patch.setattr(shard, "_write_status", first_calls(shard._write_status, 2))
        with pytest.raises(SystemExit):
            store.compact()
    monkeypatch.setattr(access, "WRITE_TIMEOUT", 0.2)
    with pytest.raises(StoreError, match=r"a compaction by process \d+ on .* is not finished") as e:
        other.write([1], columns([1], 2))
    assert e.value.users == [1]
    assert other.read([1])[0]["version"].tolist() == [1]
    other.compact()
    other.write([1], columns([1], 3))
    assert store.read([1])[0]["version"].tolist() == [3]


def first_calls(function, times):
    """`function` for so many calls, then nothing is done: what a killed process would leave."""
    left = [times]

    def call(*args):
        left[0] -= 1
        return function(*args) if left[0] >= 0 else True

    return call


# -- sizes ------------------------------------------------------------------------------------


def test_opening_reads_as_much_for_many_users_as_for_few(tmp_path):
    """Counted, not timed: reads of the file system at open."""
    counts = []
    for users in (1, 3000):
        where = tmp_path / str(users)
        with create(where, 2) as store:
            store.write(range(users), columns(range(users)))
        before = [read_metric(name) for name in READS]
        reopen(where)
        counts.append([read_metric(name) - b for name, b in zip(READS, before, strict=True)])
    (few, few_bytes), (many, many_bytes) = counts
    assert few == many == 4  # store.json, whether it is a copy's target, two shards' pointers
    assert abs(few_bytes - many_bytes) < 20  # digits of checksums
    assert 0 < many_bytes < 2000


READS = ("/tensorstore/kvstore/file/read", "/tensorstore/kvstore/file/bytes_read")


def read_metric(name):
    metrics = ts.experimental_collect_matching_metrics(name)
    return sum(v["value"] for metric in metrics if metric["name"] == name for v in metric["values"])
