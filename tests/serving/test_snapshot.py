"""Model and states as one step: read singly, restored onto other shards, refused when damaged."""

import json
import shutil

import numpy as np
import pytest

from jaxrec.data.vocabulary import Vocabulary
from jaxrec.errors import StoreError
from jaxrec.serving import Catalog
from jaxrec.serving import snapshot as snapshots
from jaxrec.serving.restore import restore
from jaxrec.serving.snapshot import RECORD, Snapshot
from jaxrec.state_store import metadata, places
from tests.serving import standin
from tests.serving.standin import ORIGIN

USERS = 30


@pytest.fixture(scope="module")
def rec():
    return standin.make()


@pytest.fixture(scope="module")
def store(rec, tmp_path_factory):
    store = rec.create_store(tmp_path_factory.mktemp("a") / "states", num_shards=3, keep_seen=2)
    for user in range(USERS):
        items, times = standin.history(user, 1 + user % 12)
        rec.append(store, [user] * len(items), items, times)
    return store


@pytest.fixture(scope="module")
def saved(rec, store, tmp_path_factory):
    folder = tmp_path_factory.mktemp("b") / "snapshots"
    assert snapshots.save(rec, store, folder) == 1
    return folder


def same_rows(a, b):
    assert sorted(a) == sorted(b)
    for name, column in a.items():
        np.testing.assert_array_equal(column, b[name], err_msg=name)


def test_single_users_are_read_without_loading_it_whole(rec, store, saved, monkeypatch):
    taken = Snapshot(saved)
    assert (taken.step, taken.users, len(taken.parts)) == (1, USERS, 3)
    read = []
    array = Snapshot._array
    monkeypatch.setattr(Snapshot, "_array", lambda *args: read.append(args[1:]) or array(*args))
    columns, known = taken.read([7, "7", 99, 7])
    assert known.tolist() == [True, False, False, True]
    same_rows({n: c[[0, 3]] for n, c in columns.items()}, store.read([7, 7])[0])
    assert not columns["events"][1:3].any()
    rows = [at for _, name, at in read if name == "rows"]
    assert [len(at) for at in rows] == [2]  # two rows of one part, of three


def test_restored_onto_another_number_of_shards_with_its_model(rec, store, saved, tmp_path):
    taken = Snapshot(saved)
    assert restore(taken, tmp_path / "new", num_shards=5) == USERS
    other = taken.load()
    assert other.version == rec.version
    again = other.open_store(tmp_path / "new", mode="r")
    assert again.num_shards == 5
    same_rows(again.read(range(USERS + 1))[0], store.read(range(USERS + 1))[0])
    users = list(range(USERS + 3))
    np.testing.assert_array_equal(other.recommend(again, users)[0], rec.recommend(store, users)[0])
    with pytest.raises(StoreError, match=f"already is a store of {USERS} users"):
        restore(taken, tmp_path / "new", num_shards=5)


def test_an_interrupted_restore_goes_on(rec, store, saved, tmp_path):
    class Killed(Exception):
        pass

    def killed(values, total):
        for index, value in enumerate(values):
            yield value
            if index == 1:
                raise Killed

    taken = Snapshot(saved)
    with pytest.raises(Killed):
        restore(taken, tmp_path / "new", 2, killed)
    with pytest.raises(StoreError, match="unfinished"):
        rec.open_store(tmp_path / "new", mode="r")
    with pytest.raises(StoreError, match="has 2 shards, not 3"):
        restore(taken, tmp_path / "new", 3)
    # another snapshot of the same users, in a folder of the same name
    snapshots.save(rec, store, tmp_path / "other")
    other = Snapshot(tmp_path / "other")
    assert (other.folder.name, other.users) == (taken.folder.name, taken.users)
    begun = rf"copy\.json: an unfinished copy of snapshot {taken.identity} .*, not of "
    with pytest.raises(StoreError, match=begun + f"snapshot {other.identity} "):
        restore(other, tmp_path / "new", 2)
    parts = []
    restored = restore(
        taken, tmp_path / "new", 2, lambda values, total: parts.append(total) or values
    )
    assert restored == USERS
    assert parts == [2]  # the first part was not read again
    again = rec.open_store(tmp_path / "new", mode="r")
    same_rows(again.read(range(USERS))[0], store.read(range(USERS))[0])


def test_a_restore_killed_at_its_very_beginning(rec, store, saved, tmp_path, monkeypatch):
    """Half a store cannot be opened, and is finished."""

    def killed(*args):
        raise SystemExit

    taken = Snapshot(saved)
    with monkeypatch.context() as patch:
        patch.setattr("jaxrec.state_store.store.write_json", killed)  # of store.json
        with pytest.raises(SystemExit):
            restore(taken, tmp_path / "new", 2)
    with pytest.raises(StoreError, match="there is no store here"):
        rec.open_store(tmp_path / "new", mode="r")
    assert restore(taken, tmp_path / "new", 2) == USERS
    with pytest.raises(ValueError, match="num_shards=0"):
        restore(taken, tmp_path / "other", 0)
    assert not (tmp_path / "other").exists()


def test_steps_follow_each_other_and_half_ones_do_not_count(rec, store, tmp_path):
    folder = tmp_path / "snapshots"
    with pytest.raises(StoreError, match="no snapshot there; there are none"):
        Snapshot(folder)
    assert [snapshots.save(rec, store, folder) for _ in range(2)] == [1, 2]
    (folder / "2" / RECORD).unlink()  # as if killed before the end
    assert snapshots.steps(folder) == [1]
    assert snapshots.save(rec, store, folder) == 2
    assert Snapshot(folder).step == 2
    assert Snapshot(folder, 1).step == Snapshot(folder / "1").step == 1
    with pytest.raises(StoreError, match="there already is a snapshot"):
        snapshots.save(rec, store, folder, step=1)
    with pytest.raises(StoreError, match=r"no snapshot 9 there; there are \[1, 2\]"):
        Snapshot(folder, 9)


def test_damage_is_named(rec, store, tmp_path):
    folder = tmp_path / "snapshots"
    snapshots.save(rec, store, folder)
    taken = Snapshot(folder)
    for file in (folder / "1" / "states").rglob("*"):
        if file.is_file() and file.stat().st_size > 1000:  # data, not metadata
            content = bytearray(file.read_bytes())
            content[len(content) // 2] ^= 1
            file.write_bytes(content)
    with pytest.raises(StoreError, match="states/0000"):
        for _ in taken.iterate():
            pass
    record = folder / "1" / RECORD
    text = json.loads(record.read_text())
    text["content"]["users"] = 1
    record.write_text(json.dumps(text))
    with pytest.raises(StoreError, match=r"record\.json: damaged"):
        Snapshot(folder)


def test_parts_and_models_of_other_snapshots_are_refused(rec, store, tmp_path):
    folder = tmp_path / "snapshots"
    snapshots.save(rec, store, folder)
    users = list(range(USERS))
    rec.append(store, users, [1000] * USERS, [ORIGIN + 2 * 10**6] * USERS)
    snapshots.save(rec, store, folder)
    part = "states/00001"
    shutil.rmtree(folder / "2" / part)
    shutil.copytree(folder / "1" / part, folder / "2" / part)  # same users, older rows
    mixed = Snapshot(folder, 2)
    refused = rf"{part}: the rows are not those that were saved: .*another snapshot's"
    with pytest.raises(StoreError, match=refused):
        restore(mixed, tmp_path / "new", 2)
    with pytest.raises(StoreError, match=refused):
        mixed.read(users)
    catalog = Catalog.load(folder / "1" / "model")
    ids = catalog.vocabulary.ids[::-1].copy()
    Catalog(Vocabulary(ids), catalog.counts, catalog.time_origin).save(folder / "1" / "model")
    with pytest.raises(StoreError, match=r"1/model: not the model of this snapshot's states"):
        Snapshot(folder, 1).load()


def test_a_snapshot_of_an_earlier_layout_is_refused_and_says_what_to_do(rec, store, tmp_path):
    snapshots.save(rec, store, tmp_path)
    root = places.open_root(tmp_path / "1")
    content, _ = metadata.read_json(root, RECORD)
    metadata.write_json(root, RECORD, content | {"store": content["store"] | {"format": 1}})
    sentence = (
        r"record\.json: .*made by an earlier layout of jaxrec: "
        "build it again with `jaxrec states build`"
    )
    with pytest.raises(StoreError, match=sentence):
        Snapshot(tmp_path)


def test_a_place_that_cannot_be_written_is_named(rec, store, tmp_path, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")  # as `write` does: without a name

    for name in ("_save_model", "_save_part", "write_json"):
        with monkeypatch.context() as patch:
            patch.setattr(snapshots, name, full)
            with pytest.raises(
                StoreError, match=rf"{tmp_path}/s/1.*: cannot be written: .*No space"
            ):
                snapshots.save(rec, store, tmp_path / "s")
        assert snapshots.steps(tmp_path / "s") == []
    assert snapshots.save(rec, store, tmp_path / "s") == 1
