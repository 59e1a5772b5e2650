"""Files around serving: events and users in, lists out; wrong ones are named."""

import json
import pathlib

import numpy as np
import polars as pl
import pytest

from jaxrec.config import DataConfig
from jaxrec.errors import DataError
from jaxrec.serving import event_files
from jaxrec.serving.event_files import TopList


def test_events_of_several_files_with_fractions(tmp_path):
    config = DataConfig(user_column="u", item_column="i", time_column="t")
    pl.DataFrame({"u": [1, 2], "i": [5, 6], "t": [10.5, 11.0]}).write_parquet(
        tmp_path / "a.parquet"
    )
    pl.DataFrame({"u": [3], "i": [7], "t": [12.25]}).write_parquet(tmp_path / "b.parquet")
    users, items, times = event_files.read_events(str(tmp_path / "*.parquet"), config)
    assert users.tolist() == [1, 2, 3]
    assert items.tolist() == [5, 6, 7]
    assert (times.astype("datetime64[ms]").astype(np.int64) == [10500, 11000, 12250]).all()
    with pytest.raises(DataError, match="'x' is missing"):
        event_files.read_events(str(tmp_path / "a.parquet"), DataConfig(user_column="x"))
    with pytest.raises(DataError, match=r"--events='none\.csv': no such file"):
        event_files.read_events("none.csv", config)


def test_times_count_what_they_counted_in_training(tmp_path):
    pl.DataFrame({"user_id": ["a"], "item_id": ["b"], "timestamp": [1_600_000_000_123]}).write_csv(
        tmp_path / "a.csv"
    )
    config = DataConfig(dataset="table", time_unit="ms")
    _, _, times = event_files.read_events(str(tmp_path / "a.csv"), config)
    assert times[0] == np.datetime64(1_600_000_000_123, "ms")


def test_users_from_lines_and_tables(tmp_path):
    lines = tmp_path / "users.txt"
    lines.write_text("7\n\n 8 \n")
    config = DataConfig()
    assert event_files.read_users(str(lines), config, text=False) == [7, 8]
    assert event_files.read_users(str(lines), config, text=True) == ["7", "8"]
    pl.DataFrame({"user_id": [7, 9]}).write_csv(tmp_path / "users.csv")
    assert event_files.read_users(str(tmp_path / "users.csv"), config, text=False) == [7, 9]
    lines.write_text("7\nseven\n")
    with pytest.raises(DataError, match="line 2: 'seven' is no integer"):
        event_files.read_users(str(lines), config, text=False)


def test_lists_come_back(tmp_path):
    lists = [TopList(1, [5, 6], [0.5, 0.25]), TopList(2, [], [])]
    assert event_files.write_lists(lists, str(tmp_path / "a.jsonl")) == 2
    rows = [json.loads(line) for line in (tmp_path / "a.jsonl").read_text().splitlines()]
    assert [TopList(**line) for line in rows] == lists
    event_files.write_lists(lists, str(tmp_path / "a.parquet"))
    assert pl.read_parquet(tmp_path / "a.parquet")["scores"].to_list() == [[0.5, 0.25], []]
    with pytest.raises(DataError, match=r"--output=a\.xml: known endings are \.jsonl"):
        event_files.write_lists(lists, "a.xml")


@pytest.mark.parametrize("name", ["a.jsonl", "a.parquet"])
def test_a_file_is_there_as_a_whole_or_not_at_all(tmp_path, name):
    def failing():
        yield TopList(1, [5], [0.5])
        raise DataError("no more")

    target = tmp_path / name
    with pytest.raises(DataError, match="no more"):
        event_files.write_lists(failing(), str(target))
    assert not list(tmp_path.iterdir())
    target.mkdir()  # something is in the way
    with pytest.raises(DataError, match=rf"--output=.*{name}: cannot be written"):
        event_files.write_lists([TopList(1, [5], [0.5])], str(target))
    assert list(tmp_path.iterdir()) == [target]


@pytest.mark.skipif(not pathlib.Path("/dev/full").exists(), reason="a full disk: /dev/full")
@pytest.mark.parametrize("as_json", [True, False])
def test_a_full_disk_is_an_error(as_json):
    with pytest.raises(OSError, match="No space left on device"):
        event_files._write([TopList(1, [5], [0.5])], pathlib.Path("/dev/full"), as_json)


def test_ids_of_any_kind(tmp_path):
    (tmp_path / "items.txt").write_text("a\nb\n")
    assert event_files.read_ids(str(tmp_path / "items.txt"), "--exclude", "i", True) == ["a", "b"]
    pl.DataFrame({"i": [3, 4]}).write_parquet(tmp_path / "items.parquet")
    ids = event_files.read_ids(str(tmp_path / "items.parquet"), "--exclude", "i", False)
    assert ids == [3, 4]
    with pytest.raises(DataError, match=r"--exclude='none\.csv': no such file"):
        event_files.read_ids("none.csv", "--exclude", "i", False)
    (tmp_path / "users.txt").write_bytes(b"7\n\xff\xfe\n")
    with pytest.raises(DataError, match=r"users\.txt, behind line \d: no text in UTF-8"):
        event_files.read_users(str(tmp_path / "users.txt"), DataConfig(), text=False)
