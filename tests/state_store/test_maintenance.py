"""Iterating, counting, compacting and copying whole stores."""

import threading

import numpy as np
import pytest

from jaxrec.errors import StoreError
from jaxrec.state_store import database as db
from tests.state_store.standin import SPEC, check_whole, columns, create, reopen


@pytest.fixture
def store(tmp_path):
    with create(tmp_path / "store") as opened:
        yield opened


def test_iterate_gives_everybody_once_in_bounded_batches(tmp_path, monkeypatch):
    monkeypatch.setattr(db, "USERS_PER_RANGE", 50)  # many ranges
    with create(tmp_path / "s", 2) as store:
        users = [*range(400), *(f"u{i}" for i in range(200))]
        store.write(users, columns(users, 1))
        assert store.num_ranges(0) > 4
        batches = list(store.iterate(16))
        assert max(len(ids) for ids, _ in batches) == 16
        listed = [user for ids, _ in batches for user in ids]
        assert len(listed) == 600
        assert set(listed) == set(users)
        for ids, rows in batches:
            check_whole(ids, np.ones(len(ids), bool), rows)
        assert [ids for ids, _ in store.iterate(16)] == [ids for ids, _ in batches]
        named = {user for part in store.users() for user in part}
        assert named == set(users)
        (only,) = {int(n) for ids, _ in store.iterate(shards=[1]) for n in store.shard_of(ids)}
        assert only == 1


def test_stat_counts_users_and_bytes(store):
    users = list(range(300))
    store.write(users, columns(users))
    before = store.stat()
    assert [s.users for s in before] == np.bincount(store.shard_of(users)).tolist()
    for shard in before:
        assert shard.users * SPEC.row_bytes <= shard.live_bytes <= shard.disk_bytes
        assert shard.disk_bytes < 1.2 * shard.users * SPEC.row_bytes + 4096
    for version in range(3):
        store.write(users, columns(users, version))
    grown = store.stat()
    assert all(g.disk_bytes > 3 * b.disk_bytes for g, b in zip(grown, before, strict=True))
    store.compact()
    after = store.stat()
    assert all(a.disk_bytes < 1.1 * b.disk_bytes for a, b in zip(after, before, strict=True))
    rows, known = store.read(users)
    assert (check_whole(users, known, rows) == 2).all()


def files_with(folder, needle):
    return [p for p in folder.rglob("*") if p.is_file() and needle in p.read_bytes()]


def test_a_deleted_users_bytes_are_gone_after_compact(store, tmp_path):
    users = ["forget-me-please", *range(100)]
    store.write(users, columns(users))
    secret = columns(users[:1])["x"].tobytes()
    kept = columns([7])["x"].tobytes()
    name = b"forget-me-please"
    assert files_with(tmp_path, secret)
    assert files_with(tmp_path, name)
    store.delete(users[:1])
    assert files_with(tmp_path, secret)  # why compact is needed
    store.compact()
    assert not files_with(tmp_path, secret)
    assert files_with(tmp_path, kept)
    assert not files_with(tmp_path, name)
    assert len([p for p in tmp_path.rglob("gen-*") if p.is_dir()]) == 3  # no old generation


def test_readers_follow_a_compaction(store, tmp_path):
    store.write(range(100), columns(range(100), 1))
    reader = reopen(tmp_path / "store")
    assert reader.read(range(100))[1].all()
    listing = reader.iterate(10)
    next(listing)
    store.compact()
    store.write(range(100), columns(range(100), 2))
    assert (reader.read(range(100))[0]["version"] == 2).all()
    assert sum(len(ids) for ids, _ in listing) == 90
    assert sum(s.users for s in reader.stat()) == 100


def test_reads_and_writes_go_on_during_compactions(store, tmp_path):
    """Threads read, one compacts, one writes: every row whole, versions never go back."""
    users = list(range(60))
    store.write(users, columns(users, 1))
    stop, errors = threading.Event(), []

    def watch():
        reader, seen = reopen(tmp_path / "store"), np.zeros(60, np.int64)
        try:
            while not stop.is_set():
                rows, known = reader.read(users)
                assert known.all()
                versions = check_whole(users, known, rows)
                assert (versions >= seen).all()
                seen = versions
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=watch) for _ in range(2)]
    for thread in threads:
        thread.start()
    for version in range(2, 8):
        store.write(users, columns(users, version))
        store.compact([version % 3])
    stop.set()
    for thread in threads:
        thread.join()
    assert not errors


@pytest.mark.parametrize("num_shards", [1, 5])
def test_copy_into_another_number_of_shards(store, tmp_path, num_shards):
    users = [*range(200), "a", "b"]
    store.write(users, columns(users, 2))
    counts = []
    assert store.copy(tmp_path / "new", num_shards, counts.append) == 202
    assert counts[-1] == 202
    new = reopen(tmp_path / "new")
    assert new.num_shards == num_shards
    assert not (tmp_path / "new" / "copy.json").exists()
    rows, known = new.read(users)
    assert (check_whole(users, known, rows) == 2).all()
    with pytest.raises(StoreError, match="not an unfinished copy"):
        store.copy(tmp_path / "new", num_shards)


def test_an_interrupted_copy_goes_on_and_cannot_be_read_before(store, tmp_path, monkeypatch):
    monkeypatch.setattr(db, "USERS_PER_RANGE", 20)
    users = list(range(300))
    store.write(users, columns(users, 2))

    class Killed(Exception):
        pass

    def kill(users):
        if users > 100:
            raise Killed

    with pytest.raises(Killed):
        store.copy(tmp_path / "new", 4, kill)
    with pytest.raises(StoreError, match=r"copy\.json: the store is the target of an unfinished"):
        reopen(tmp_path / "new")
    with pytest.raises(StoreError, match="has 4 shards, not 5"):
        store.copy(tmp_path / "new", 5)
    with create(tmp_path / "other") as other, pytest.raises(StoreError, match="unfinished copy of"):
        other.copy(tmp_path / "new", 4)
    counts = []
    assert store.copy(tmp_path / "new", 4, counts.append) == 300
    assert counts[0] > 60  # what was durable is not copied again
    rows, known = reopen(tmp_path / "new").read(users)
    assert (check_whole(users, known, rows) == 2).all()
