import dataclasses
import errno
import json
import os
import signal
import subprocess
import sys
import textwrap
import threading

import numpy as np
import polars as pl
import pytest

from jaxrec.config import DataConfig, SyntheticConfig
from jaxrec.data import preparation, prepare, records
from jaxrec.errors import DataError

EVENTS = {
    "user_id": ["u2", "u1", "u1", "u1", "u2", "u3"],
    "item_id": [30, 10, 20, 10, 10, 20],
    "timestamp": [105, 103, 101, 102, 104, 100],
}


@pytest.fixture
def config(tmp_path):
    pl.DataFrame(EVENTS).write_parquet(tmp_path / "events.parquet")
    items = {"item_id": [20, 10, 10], "title": ["twenty", "ten", "again"]}
    pl.DataFrame(items).write_csv(tmp_path / "items.csv")
    return DataConfig(
        dataset="table",
        path=str(tmp_path / "events.parquet"),
        items_path=str(tmp_path / "items.csv"),
        text_columns=("title",),
        min_item_events=1,
        min_user_events=1,
    )


def test_prepares_a_table(config, tmp_path):
    data = prepare(config, tmp_path / "data")
    assert data.users.tolist() == ["u1", "u2", "u3"]
    assert (data.num_users, data.num_items, data.time_origin) == (3, 3, 100)
    assert data.vocabulary.ids.tolist() == [10, 20, 30]
    assert data.lengths.tolist() == [3, 2, 1]
    items, times = data.histories.user(0)
    assert (items.tolist(), times.tolist()) == ([2, 1, 1], [1, 2, 3])
    assert data.histories.returning is None
    assert data.boundaries.train_end.tolist() == [1, 2, 1]
    assert data.counts.tolist() == [0, 1, 2, 1]
    assert data.texts == {"title": ["", "ten", "twenty", ""]}
    assert data.report["rows"] == data.report["events"] == 6
    assert data.folder.parent == tmp_path / "data"


def test_records_hold_one_user_each(config, tmp_path):
    data = prepare(config, tmp_path / "data")
    assert len(data.source) == 3
    record = data.source[1]
    assert record.items.tolist() == [1, 3]
    assert record.times.tolist() == [4, 5]
    assert record.items.dtype == record.times.dtype == np.int32
    assert record.returning is None
    assert [r.items.tolist() for r in data.source.__getitems__([2, 0])] == [[2], [2, 1, 1]]


def test_second_call_reads_what_the_first_wrote(config, tmp_path, monkeypatch):
    first = prepare(config, tmp_path / "data")

    def never(*args):
        raise AssertionError("prepared twice")

    monkeypatch.setattr(preparation, "_write", never)
    second = prepare(config, tmp_path / "data")
    assert second.digest == first.digest
    assert second.folder == first.folder
    assert (second.counts == first.counts).all()
    assert second.texts == first.texts


def test_a_lock_follows_no_link_and_truncates_nothing(config, tmp_path):
    prepare(config, tmp_path / "data")
    (name,) = [path.name for path in (tmp_path / "data").glob(".lock-*")]
    victim, lock = tmp_path / "victim", tmp_path / "other" / name
    victim.write_text("kept")
    lock.parent.mkdir()
    lock.symlink_to(victim)
    with pytest.raises(DataError, match=rf"{name}: cannot be opened: .*Remove it"):
        prepare(config, lock.parent)
    lock.unlink()
    os.link(victim, lock)  # the file itself
    prepare(config, lock.parent)
    assert victim.read_text() == "kept"


def test_settings_name_the_folder(config, tmp_path):
    def at(**changes):
        return prepare(dataclasses.replace(config, **changes), tmp_path / "data")

    base = at()
    loading = at(workers=0, worker_processes=3)
    assert (loading.folder, loading.digest) == (base.folder, base.digest)
    held = at(holdout=2)
    assert held.folder == base.folder
    assert held.digest != base.digest
    assert held.boundaries.train_end.tolist() == [3, 2, 1]
    assert at(min_item_events=2).folder != base.folder
    # the file's content counts, its place does not
    (tmp_path / "moved.parquet").write_bytes((tmp_path / "events.parquet").read_bytes())
    assert at(path=str(tmp_path / "moved.parquet")).digest == base.digest
    changed = pl.DataFrame({**EVENTS, "timestamp": [1, 2, 3, 4, 5, 6]})
    changed.write_parquet(tmp_path / "events.parquet")
    assert at().folder != base.folder


def test_cache_dir_wins_over_the_workdir(config, tmp_path):
    config = dataclasses.replace(config, cache_dir=str(tmp_path / "cache"))
    assert prepare(config, tmp_path / "data").folder.parent == tmp_path / "cache"
    assert not (tmp_path / "data").exists()


def test_temporal_split(config, tmp_path):
    config = dataclasses.replace(config, split="time", validation_time=0.5, test_time=0.8)
    data = prepare(config, tmp_path / "data")
    # validation from second 3, test from second 4
    assert data.boundaries.train_end.tolist() == [2, 0, 1]
    assert data.boundaries.validation_end.tolist() == [3, 0, 1]
    assert data.counts.tolist() == [0, 1, 2, 0]


def test_planted_returns_travel_along(tmp_path):
    config = DataConfig(
        dataset="synthetic",
        synthetic=SyntheticConfig(users=20, items=50, events=100, gap=20),
        min_item_events=1,
    )
    data = prepare(config, tmp_path)
    returning = data.histories.returning
    assert returning is not None
    assert 0 < returning.sum() < len(returning) / 4
    assert (data.source[3].returning == returning[data.offsets[3] : data.offsets[4]]).all()
    assert data.texts is None


def test_failed_preparation_leaves_nothing(config, tmp_path, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(records, "write", full)
    with pytest.raises(DataError, match=r"No space left.*data\.cache_dir"):
        prepare(config, tmp_path / "data")
    assert [f.name for f in (tmp_path / "data").iterdir() if f.is_dir()] == []
    monkeypatch.undo()
    assert prepare(config, tmp_path / "data").num_users == 3


def test_killed_preparation_is_done_again(config, tmp_path):
    script = f"""
        import sys, time
        from jaxrec.config import DataConfig
        from jaxrec.data import prepare, records
        write = records.write

        def stop(folder, *rest, **named):
            write(folder, *rest, **named)
            print("written", flush=True)
            time.sleep(60)

        records.write = stop
        prepare(DataConfig(**{dataclasses.asdict(config) | {"synthetic": None}!r}), sys.argv[1])
    """
    command = [sys.executable, "-c", textwrap.dedent(script), str(tmp_path / "data")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "written\n"
        os.kill(process.pid, signal.SIGKILL)
    left = [f.name for f in (tmp_path / "data").iterdir() if f.is_dir()]
    assert len(left) == 1
    assert left[0].startswith(".preparing-table-")
    data = prepare(config, tmp_path / "data")
    assert data.num_users == 3
    assert [f for f in (tmp_path / "data").iterdir() if f.is_dir()] == [data.folder]


def test_two_at_once_prepare_once(config, tmp_path, monkeypatch):
    calls = []
    write = preparation._write
    monkeypatch.setattr(preparation, "_write", lambda *args: (calls.append(1), write(*args)))
    found = []
    threads = [
        threading.Thread(target=lambda: found.append(prepare(config, tmp_path / "data")))
        for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(calls) == 1
    assert [data.num_users for data in found] == [3, 3]


def test_damaged_folder_is_named(config, tmp_path):
    folder = prepare(config, tmp_path / "data").folder
    (folder / "texts.json").write_text("{")
    with pytest.raises(DataError, match=r"texts\.json has 1 bytes, .* Remove the folder"):
        prepare(config, tmp_path / "data")
    (folder / "texts.json").unlink()
    with pytest.raises(DataError, match=r"texts\.json is missing.* Remove the folder"):
        prepare(config, tmp_path / "data")
    (folder / "complete.json").write_text("{")
    with pytest.raises(DataError, match=r"complete\.json: damaged"):
        prepare(config, tmp_path / "data")


def test_damaged_records_and_split_are_named(config, tmp_path):
    data = prepare(config, tmp_path / "data")
    (split,) = data.folder.glob("split-*.npz")
    split.write_bytes(b"no archive")
    with pytest.raises(DataError, match=r"split-.*\.npz: damaged"):
        prepare(config, tmp_path / "data")
    with pytest.raises(DataError, match="no prepared records"):
        len(records.RecordSource(tmp_path))


def test_marker_says_what_the_data_is(config, tmp_path):
    folder = prepare(config, tmp_path / "data").folder
    marker = json.loads((folder / "complete.json").read_text())["content"]
    assert marker["settings"]["min_item_events"] == 1
    assert "path" not in marker["settings"]
    assert marker["files"].keys() >= {"vocabulary.json", "users.npy", "offsets.npy"}


def test_no_tensorflow():
    script = """
        import sys, tempfile
        import jaxrec.data
        light = {"polars", "grain", "tensorflow_datasets"} & set(sys.modules)
        assert not light, light
        from jaxrec.config import DataConfig, LayoutConfig, SyntheticConfig
        from jaxrec.data.pipeline import train_batches
        synthetic = SyntheticConfig(users=4, items=8, events=20, gap=2)
        config = DataConfig(dataset="synthetic", synthetic=synthetic, min_item_events=1)
        with tempfile.TemporaryDirectory() as folder:
            data = jaxrec.data.prepare(config, folder)
            next(train_batches(data, LayoutConfig(segment_size=4), batch_size=2, seed=0))
        assert "tensorflow" not in sys.modules
        assert "pandas" not in sys.modules
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(script)], check=True)
