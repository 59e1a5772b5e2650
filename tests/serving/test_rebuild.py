"""A new model's store from the prepared data: who is in it, who is not, killed and gone on."""

import threading

import numpy as np
import pytest

from jaxrec.errors import StoreError
from jaxrec.serving import build, verification
from jaxrec.serving import rebuild as rebuilding
from jaxrec.serving.rebuild import RebuildResult, create_or_open, rebuild
from tests.serving import standin
from tests.serving.standin import ORIGIN, USERS, histories


@pytest.fixture
def old(tmp_path):
    """The store of another model: everybody, but one deleted and one who came later."""
    rec = standin.make(repeat_half_lives=(5.0,))
    with rec.create_store(tmp_path / "old", encoding="int8", num_shards=2) as store:
        build.build_states(rec, store, histories(rec))
        store.delete([53])
        rec.append(store, [7, 60], [1000, 1000], [ORIGIN + 10**8] * 2)
        yield store


def test_the_users_of_the_old_store_by_the_new_model(old, tmp_path):
    rec = standin.make()
    data = histories(rec)
    with rec.create_store(tmp_path / "new", num_shards=3) as store:
        done = rebuild(rec, old, store, data)
        assert done == RebuildResult(users=USERS - 1, already_built=0, missing=1, shorter=1)
        result = verification.verify(rec, store, data)
        assert (result.checked, result.missing, result.changed) == (USERS - 1, 1, 0)
        assert result.passed
        assert store.read([53, 7])[1].tolist() == [False, False]
        assert rebuild(rec, old, store, data) == RebuildResult(0, USERS - 1, 1, 0)
        with pytest.raises(StoreError, match="old and new store are the same"):
            rebuild(rec, store, store, data)


def test_killed_it_goes_on_and_shards_are_shared(old, tmp_path, monkeypatch):
    monkeypatch.setattr(rebuilding, "BATCH", 4)
    rec = standin.make()
    data = histories(rec)

    class Killed(Exception):
        pass

    def killed(values, most):
        for count, value in enumerate(values, 1):
            yield value
            if count == 2:
                raise Killed

    rec.create_store(tmp_path / "new", num_shards=3).close()
    with rec.open_store(tmp_path / "new", shards=[0, 2]) as store:
        with pytest.raises(Killed):
            rebuild(rec, old, store, data, killed)
        written = sum(shard.users for shard in store.stat())
        assert 0 < written < USERS - 1
        batches = []
        done = rebuild(rec, old, store, data, lambda v, most: batches.append(most) or v)
        assert done.already_built == written
        assert batches[0] >= (USERS - 1) / 4
    with rec.open_store(tmp_path / "new", shards=[1]) as store:
        rest = rebuild(rec, old, store, data)
        assert written + done.users + rest.users == USERS - 1
        assert done.missing + rest.missing == 1
        assert verification.verify(rec, store, data).checked == USERS - 1


def test_text_users_are_found_by_their_text():
    names = np.asarray(["b", "a", "c"])
    order = np.argsort(names)
    rows, known = rebuilding._prepared_rows(["c", 5, "aa", "a"], names[order], order)
    assert known.tolist() == [True, False, False, True]
    assert rows[known].tolist() == [2, 1]


def test_processes_that_start_together_make_one_store(tmp_path):
    rec = standin.make()
    stores, errors = [], []
    barrier = threading.Barrier(3)

    def start(shards):
        barrier.wait()
        try:
            stores.append(create_or_open(rec, tmp_path / "s", num_shards=6, shards=shards))
        except StoreError as error:
            errors.append(error)

    threads = [threading.Thread(target=start, args=([2 * i, 2 * i + 1],)) for i in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    assert sorted(i for store in stores for i in store.owned) == list(range(6))
    with pytest.raises(StoreError, match="open for writing by process"):
        create_or_open(rec, tmp_path / "s", shards=[3])
    for store in stores:
        store.close()


def test_a_store_that_is_not_what_was_asked_for(tmp_path, monkeypatch):
    rec = standin.make()
    create_or_open(rec, tmp_path / "s", encoding="int8", keep_seen=3).close()
    with create_or_open(rec, tmp_path / "s", encoding="int8") as store:
        assert rebuilding.settings_of(store) == {
            "encoding": "int8",
            "keep_seen": 3,
            "num_shards": 8,
        }
    with pytest.raises(StoreError, match="encoding: store int8, given float32; keep_seen: store 3"):
        create_or_open(rec, tmp_path / "s", encoding="float32", keep_seen=0)
    monkeypatch.setattr(rebuilding, "CREATE_TIMEOUT", 0.1)
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StoreError, match="file"):
        create_or_open(rec, tmp_path / "file")
    with pytest.raises(ValueError, match="encoding='int4'"):
        create_or_open(rec, tmp_path / "t", encoding="int4")


def test_a_store_in_memory_is_known_to_the_whole_process():
    rec = standin.make()
    with rec.create_store("memory://rebuild/states/", num_shards=1) as store:
        rec.append(store, [1], [1000], [ORIGIN])
    again = rec.open_store("memory://rebuild/states/", mode="r")
    assert again.read([1])[1].all()
    with pytest.raises(StoreError, match="a path or a URL is needed"):
        rec.open_store("")
