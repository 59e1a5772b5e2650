"""Truncated, missing and bit-flipped files: an error that names the file, never another value."""

import numpy as np
import pytest

from jaxrec.errors import StoreError
from jaxrec.state_store import database as db
from jaxrec.state_store import metadata, places
from tests.state_store.standin import columns, create, everything, reopen


@pytest.fixture
def damaged_store(tmp_path, monkeypatch):
    """A closed store of many nodes, its users, and what a whole read of it gives."""
    monkeypatch.setattr(db, "NODE_BYTES", 1024)
    users = [*range(150), "a", "b"]
    with create(tmp_path / "s", 2) as store:
        store.write(users, columns(users, 1))
        store.write(users[:20], columns(users[:20], 2))
        store.delete([3])
    return tmp_path / "s", users, everything(tmp_path / "s", users)


def damages(raw, rng):
    """Truncations, a missing file, single flipped bits."""
    yield from (raw[:size] for size in sorted({0, 1, len(raw) // 2, len(raw) - 1}))
    yield None
    for place in rng.integers(0, len(raw) * 8, 12).tolist():
        flipped = bytearray(raw)
        flipped[place // 8] ^= 1 << place % 8
        yield bytes(flipped)


def test_every_damaged_file_is_named_or_does_no_harm(damaged_store):
    where, users, whole = damaged_store
    files = sorted(path for path in where.rglob("*") if path.is_file())
    assert len(files) > 8
    rng = np.random.default_rng(0)
    named, messages = set(), []
    for path in files:
        raw = path.read_bytes()
        for damage in damages(raw, rng):
            path.unlink() if damage is None else path.write_bytes(damage)
            try:
                assert everything(where, users) == whole, path
            except StoreError as error:
                named.add(path)
                messages.append((path.name, str(error)))
        path.write_bytes(raw)
    assert everything(where, users) == whole
    assert [pair for pair in messages if pair[0] not in pair[1]] == []
    unnamed = [path.name for path in files if path not in named]
    # nothing that is read depends on locks and on files of older versions only
    assert {"store.json", "current", "manifest.ocdbt"}.isdisjoint(unnamed)
    assert len(named) >= 8


def flip_row(where, user):
    """Damages the stored row of one user; returns the file."""
    raw_row = columns([user], 1)["x"].tobytes()
    (path,) = [p for p in where.rglob("*") if p.is_file() and raw_row in p.read_bytes()]
    raw = bytearray(path.read_bytes())
    raw[raw.index(raw_row) + 7] ^= 16
    path.write_bytes(raw)
    return path


def test_damaged_rows_are_listed_and_can_be_replaced(damaged_store):
    where, users, _ = damaged_store
    path = flip_row(where, 50)
    flip_row(where, "a")
    with reopen(where, mode="w") as store:
        with pytest.raises(StoreError, match="checksum mismatch") as caught:
            store.read([49, 50, 51])
        assert caught.value.users == [50]
        assert path.name in str(caught.value)
        assert store.read([49, 51])[1].all()
        with pytest.raises(StoreError, match="checksum") as caught:
            store.update(users[40:60], lambda ids, rows, known: columns(ids, 9))
        assert set(caught.value.users) == set(users[40:60])  # who was not written
        assert store.read([49])[0]["version"].tolist() == [1]
        with pytest.raises(StoreError, match=r"compaction was given up.*`damaged\(\)` lists"):
            store.compact()
        assert store.read([49])[1].all()
        listed = dict(store.damaged())
        assert set(listed) == {50, "a"}
        assert path.name in listed[50]
        store.write([50], columns([50], 2))
        store.delete(["a"])
        assert list(store.damaged()) == []
        store.compact()
        assert store.read([50, "a"])[1].tolist() == [True, False]


def test_a_copy_of_damaged_rows_is_an_error(damaged_store, tmp_path):
    where, _, _ = damaged_store
    flip_row(where, 50)
    with reopen(where) as store, pytest.raises(StoreError, match="checksum"):
        store.copy(tmp_path / "copy")
    with pytest.raises(StoreError, match="unfinished copy"):
        reopen(tmp_path / "copy")


def test_a_lost_database_is_not_an_empty_one(damaged_store):
    where, users, _ = damaged_store
    (manifest,) = where.glob("shard-00001/gen-*/manifest.ocdbt")
    manifest.unlink()
    for act in (
        lambda store: store.read(users),
        lambda store: store.stat(),
        lambda store: list(store.iterate()),
    ):
        with reopen(where) as store, pytest.raises(StoreError, match=r"shard-00001/gen-.*manifest"):
            act(store)
    with pytest.raises(StoreError, match="manifest"):
        reopen(where, mode="w")


def swapped(folder, other, first, second):
    """Exchanges two shard folders, of one store or of two."""
    aside = folder / "aside"
    (folder / first).rename(aside)
    (other / second).rename(folder / first)
    aside.rename(other / second)


@pytest.mark.parametrize("mode", ["r", "w"])
@pytest.mark.parametrize("compacted", [False, True])
def test_shard_folders_of_another_place_are_refused(damaged_store, tmp_path, mode, compacted):
    where, users, whole = damaged_store
    if compacted:
        with reopen(where, mode="w") as store:
            store.compact()
    swapped(where, where, "shard-00000", "shard-00001")
    refused = r"shard-0000[01]/: this is shard [10] of store (\w+), not shard [01] of store \1:"
    with pytest.raises(StoreError, match=refused):
        reopen(where, mode=mode).read(users)
    swapped(where, where, "shard-00000", "shard-00001")
    assert everything(where, users) == whole
    other = tmp_path / "other"
    shards = len(list(where.glob("shard-*")))
    create(other, num_shards=shards).close()
    swapped(where, other, "shard-00001", "shard-00001")
    refused = r"shard-00001/: this is shard 1 of store (\w+), not shard 1 of store (?!\1)"
    for place in (where, other):
        with pytest.raises(StoreError, match=refused):
            reopen(place, mode=mode).read(users)


def test_an_empty_shard_of_a_killed_create_becomes_one_of_the_store(tmp_path, monkeypatch):
    def killed(*args):
        raise SystemExit

    with monkeypatch.context() as patch:
        patch.setattr("jaxrec.state_store.store.write_json", killed)  # of store.json
        with pytest.raises(SystemExit):
            create(tmp_path / "s")
    with create(tmp_path / "s") as store:
        assert not store.read([1])[1].any()


def test_another_format_is_refused(tmp_path):
    create(tmp_path / "s").close()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(metadata, "FORMAT", 4)
        with pytest.raises(StoreError, match="format 3 found, this version reads 4"):
            reopen(tmp_path / "s")


@pytest.mark.parametrize("encoding_key", ["form", "encoding"])
def test_a_store_of_an_earlier_layout_is_refused_and_says_what_to_do(tmp_path, encoding_key):
    create(tmp_path / "s").close()
    root = places.open_root(tmp_path / "s")
    content, _ = metadata.read_json(root, metadata.STORE_FILE)
    content["binding"][encoding_key] = content["binding"].pop("encoding")
    metadata.write_json(root, metadata.STORE_FILE, content | {"format": 1})
    sentence = (
        r"store\.json: format 1 found, this version reads 3: made by an earlier layout of jaxrec: "
        "build it again with `jaxrec states build`"
    )
    with pytest.raises(StoreError, match=sentence):
        reopen(tmp_path / "s")


def test_a_store_of_a_later_version_is_not_called_an_earlier_one(tmp_path):
    create(tmp_path / "s").close()
    root = places.open_root(tmp_path / "s")
    content, _ = metadata.read_json(root, metadata.STORE_FILE)
    metadata.write_json(root, metadata.STORE_FILE, content | {"format": 9})
    with pytest.raises(StoreError, match=r"format 9 found.*open it with the jaxrec that made it"):
        reopen(tmp_path / "s")


@pytest.mark.parametrize(
    "garbage",
    [["../../victim"], ["../shard-00001"], [""], ["current"], "victim", [3], "the current one"],
)
def test_only_generations_of_the_shard_are_deleted(tmp_path, garbage):
    where = tmp_path / "s"
    with create(where, 2) as store:
        store.write([1, 2, 3], columns([1, 2, 3], 1))
    (tmp_path / "victim").mkdir()
    (tmp_path / "victim" / "file").write_text("kept")
    root = places.open_root(where / "shard-00000")
    pointer, _ = metadata.read_json(root, "current")
    before = sorted(tmp_path.rglob("*"))
    names = [pointer["generation"]] if garbage == "the current one" else garbage
    metadata.write_json(root, "current", {**pointer, "garbage": names})
    with pytest.raises(StoreError, match=r"shard-00000/current: not a pointer to generations"):
        reopen(where, mode="w")
    assert sorted(tmp_path.rglob("*")) == before
    metadata.write_json(root, "current", pointer)
    assert len(everything(where, [1, 2, 3])) > 0


def test_a_linked_generation_is_not_deleted(tmp_path):
    where, name = tmp_path / "s", f"gen-{'a' * 16}"
    create(where, 1).close()
    (tmp_path / "victim").mkdir()
    (tmp_path / "victim" / "file").write_text("kept")
    (where / "shard-00000" / name).symlink_to(tmp_path / "victim")
    root = places.open_root(where / "shard-00000")
    pointer, _ = metadata.read_json(root, "current")
    metadata.write_json(root, "current", {**pointer, "garbage": [name]})
    with pytest.raises(StoreError, match=rf"{name}: cannot be deleted"):
        reopen(where, mode="w")
    assert (tmp_path / "victim" / "file").exists()


def test_a_seal_cannot_delete_the_current_generation(tmp_path):
    create(tmp_path / "s", 1).close()
    with reopen(tmp_path / "s", mode="w") as store:
        (shard,) = store._shards
        for target in (shard.current.name, "../../victim"):
            with pytest.raises(StoreError, match="not a generation that may be deleted"):
                shard.remove_generation(target)


def test_a_writers_lock_follows_no_link(tmp_path):
    create(tmp_path / "s", 1).close()
    victim = tmp_path / "victim"
    victim.write_text("kept")
    lock = tmp_path / "s" / "shard-00000" / "writer.lock"
    lock.unlink()
    lock.symlink_to(victim)
    with pytest.raises(StoreError, match=r"writer\.lock: cannot be opened"):
        reopen(tmp_path / "s", mode="w")
    assert victim.read_text() == "kept"


def test_a_writers_lock_truncates_nothing(tmp_path):
    create(tmp_path / "s", 1).close()
    (lock,) = tmp_path.rglob("shard-00000/writer.lock")
    lock.write_text("x" * 300)
    with reopen(tmp_path / "s", mode="w"):
        assert lock.stat().st_size == 300
        with pytest.raises(StoreError, match=r"open for writing by process \d+ on [^x\n]+; close"):
            reopen(tmp_path / "s", mode="w")
