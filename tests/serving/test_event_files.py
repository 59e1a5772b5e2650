"""Files around serving: events and users in, lists out; wrong ones are named."""

import gzip
import io
import json
import pathlib

import numpy as np
import polars as pl
import pytest

from jaxrec.config import DataConfig
from jaxrec.errors import DataError
from jaxrec.serving import Recommender, arguments, event_files, jobs, recommending
from jaxrec.serving.event_files import TopList
from tests.serving import standin


def test_events_of_several_files_with_fractions(tmp_path):
    config = DataConfig(user_column="u", item_column="i", time_column="t")
    pl.DataFrame({"u": [1, 2], "i": [5, 6], "t": [10.5, 11.0]}).write_parquet(
        tmp_path / "a.parquet"
    )
    pl.DataFrame({"u": [3], "i": [7], "t": [12.25]}).write_parquet(tmp_path / "b.parquet")
    users, items, times = event_files.read_events(str(tmp_path / "*.parquet"), config)[:3]
    assert users.tolist() == [1, 2, 3]
    assert items.tolist() == [5, 6, 7]
    assert (times.astype("datetime64[ms]").astype(np.int64) == [10500, 11000, 12250]).all()
    with pytest.raises(DataError, match="'x' is missing"):
        event_files.read_events(str(tmp_path / "a.parquet"), DataConfig(user_column="x"))
    with pytest.raises(DataError, match=r"--events='none\.csv': no such file"):
        event_files.read_events("none.csv", config)


@pytest.mark.parametrize("dataset", ["table", "planted"])
def test_times_count_what_they_counted_in_training(dataset, tmp_path):
    pl.DataFrame({"user_id": ["a"], "item_id": ["b"], "timestamp": [1_600_000_000_123]}).write_csv(
        tmp_path / "a.csv"
    )
    config = DataConfig(dataset=dataset, time_unit="ms")
    _, _, times = event_files.read_events(str(tmp_path / "a.csv"), config)[:3]
    assert times[0] == np.datetime64(1_600_000_000_123, "ms")


@pytest.mark.parametrize("column", ["user_id", "item_id", "timestamp"])
def test_rows_without_user_item_or_time(column, tmp_path):
    rows = {"user_id": [1, 2, 3], "item_id": [5, 6, 7], "timestamp": [10, 11, 12]}
    rows[column][1] = None
    file = tmp_path / "a.parquet"
    pl.DataFrame(rows).write_parquet(file)
    with pytest.raises(DataError, match=rf"a\.parquet: column '{column}' is null in 1 rows, first"):
        event_files.read_events(str(file), DataConfig())
    read = event_files.read_events(str(file), DataConfig(incomplete="drop"))
    assert (len(read.users), read.incomplete, read.rows) == (2, 1, 3)
    pl.DataFrame(rows)[1:2].write_parquet(file)
    with pytest.raises(DataError, match="no rows are left, all 1 are incomplete"):
        event_files.read_events(str(file), DataConfig(incomplete="drop"))


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
    titled = [TopList(1, [5, 6], [0.5, 0.25], ["a, b", None])]
    event_files.write_lists(titled, str(tmp_path / "a.csv"))
    assert (tmp_path / "a.csv").read_text().splitlines() == [
        "user,rank,item,score,title", '1,1,5,0.5,"a, b"', "1,2,6,0.25,",
    ]  # fmt: skip
    with pytest.raises(DataError, match=r"--output=a\.xml: known endings are \.jsonl"):
        event_files.write_lists(lists, "a.xml")


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv", "a.parquet"])
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
@pytest.mark.parametrize("target", ["a.jsonl", "a.csv", "a.parquet"])
def test_a_full_disk_is_an_error(target):
    with pytest.raises(OSError, match="No space left on device"):
        event_files._write([TopList(1, [5], [0.5])], pathlib.Path("/dev/full"), target)


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


BOM = "\ufeff"


@pytest.mark.parametrize(
    "content",
    [
        f"{BOM}0042\n007\n",
        "visitor\n0042\n\n007\n",
        f'{BOM}"visitor"\r\n"0042"\r\n"007"\r\n',
        " 0042\n\n\n007 ",
    ],
)
def test_lines_that_are_no_ids(tmp_path, content, monkeypatch):
    lines = tmp_path / "ids.txt"
    lines.write_text(content, newline="")
    for text, ids in ((True, ["0042", "007"]), (False, [42, 7])):
        assert event_files.read_ids(str(lines), "--users", "visitor", text) == ids
        monkeypatch.setattr("sys.stdin", io.StringIO(content))
        assert event_files.read_ids("-", "--users", "visitor", text) == ids


@pytest.mark.parametrize("name", ["ids.csv", "ids.tsv", "ids.csv.gz"])
def test_ids_of_a_table_have_the_kind_of_the_data(tmp_path, name):
    content = f'{BOM}visitor\n0042\n\n"007"\n'.encode()
    (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    source = str(tmp_path / name)
    assert event_files.read_ids(source, "--users", "visitor", True) == ["0042", "007"]
    assert event_files.read_ids(source, "--users", "visitor", False) == [42, 7]


def test_text_in_a_table_of_integers_names_the_line(tmp_path):
    (tmp_path / "ids.csv").write_text("visitor\n42\nx7\n")
    with pytest.raises(DataError, match=r"ids\.csv, line 3: 'x7' is no integer"):
        event_files.read_ids(str(tmp_path / "ids.csv"), "--users", "visitor", False)


def test_digits_in_events_stay_text_where_ids_are(tmp_path):
    (tmp_path / "day.csv").write_text("user_id,item_id,timestamp\n0042,007,1700000000\n")
    pattern, config = str(tmp_path / "day.csv"), DataConfig()
    users, items, _ = event_files.read_events(pattern, config, text_users=True, text_items=True)[:3]
    assert (users.tolist(), items.tolist()) == (["0042"], ["007"])
    users, items, _ = event_files.read_events(pattern, config, text_items=True)[:3]
    assert (users.tolist(), items.tolist()) == ([42], ["007"])


def test_unknown_ids_are_counted(capsys):
    recommending._say_unknown("--exclude", np.array([True, False, True]), "items", "ignored")
    assert capsys.readouterr().err == "--exclude: 2 of 3 items are unknown: ignored\n"
    recommending._say_unknown("--exclude", np.array([], bool), "items", "ignored")
    recommending._say_unknown("--users", np.array([False]), "users", "ignored")
    assert not capsys.readouterr().err


def test_recommend_counts_unknown_ids(tmp_path, monkeypatch, capsys):
    config = standin.config(layers=1)
    rec = Recommender(config, standin.params_of(config), standin.catalog())
    store = rec.create_store(tmp_path / "states")
    rec.append(store, [1, 2], [1000, 1010], [standin.ORIGIN, standin.ORIGIN + 1])
    store.close()
    for name, ids in (("users", "1\n2\n77\n"), ("bad", "1000\n5\n6\n"), ("few", "1000\n1010\n8\n")):
        (tmp_path / name).write_text(ids)
    monkeypatch.setattr(jobs, "_load", lambda args: rec)
    flags = f"--workdir=x --store={tmp_path}/states --users={tmp_path}/users"
    flags += f" --exclude={tmp_path}/bad --candidates={tmp_path}/few --k=1"
    jobs.recommend(arguments.parsers("")["recommend"].parse_args(flags.split()))
    captured = capsys.readouterr()
    assert [json.loads(line)["items"] for line in captured.out.splitlines()] == [[1010]] * 3
    assert captured.err.splitlines() == [
        "--candidates: 1 of 3 items are unknown: ignored",
        "--exclude: 2 of 3 items are unknown: ignored",
        "--users: 1 of 3 users are unknown: given the most popular items",
    ]


def test_append_says_what_it_dropped(tmp_path, monkeypatch, capsys):
    config = standin.config()
    config.data.incomplete = "drop"
    rec = Recommender(config, standin.params_of(config), standin.catalog(), step=1)
    rec.create_store(tmp_path / "states").close()
    file = tmp_path / "new.csv"
    file.write_text(f"user_id,item_id,timestamp\n1,1000,{standin.ORIGIN}\n1,,{standin.ORIGIN}\n")
    monkeypatch.setattr(jobs, "_load", lambda args: rec)
    flags = f"--workdir=x --store={tmp_path}/states --events={file}"
    jobs.append(arguments.parsers("")["append"].parse_args(flags.split()))
    captured = capsys.readouterr()
    assert "--events: 1 of 2 rows have no user, item or time: dropped\n" in captured.err
    result = json.loads(captured.out)
    assert (result["events"], result["incomplete"]) == (1, 1)
