"""Input that was once misread without a word: quotes, edited files, kinds of ids."""

import gzip
import json
import os

import pytest

from jaxrec.config import DataConfig
from jaxrec.data import digests, prepare
from jaxrec.data.datasets import quoting
from jaxrec.data.preparation import verify
from jaxrec.errors import DataError

HEADER = "user_id,item_id,timestamp,title\n"


def table(path, rows, header=HEADER):
    text = header + "".join(f"{row}\n" for row in rows)
    if path.suffix in (".tsv", ".gz") and ".tsv" in path.name:
        text = text.replace(",", "\t")
    if path.suffix == ".gz":
        path.write_bytes(gzip.compress(text.encode()))
    else:
        path.write_text(text)
    return path


def config_of(path, **settings):
    defaults = {"dataset": "table", "min_item_events": 1, "min_user_events": 1}
    return DataConfig(path=str(path), **{**defaults, **settings})


def prepared(path, folder=None, **settings):
    return prepare(config_of(path, **settings), folder or path.parent / "data")


# -- quotes in columns that nobody reads --------------------------------------------------------

STRAY = {
    "inside": ["one", 'disk 5"', "three", 'disk 3"', "five"],
    "at the start": ["one", '"two', "three", '"four', "five"],
    "at the end": ["one", "two", 'three"', "four", "five"],
    "behind a closed field": ["one", '"two" inches', "three", "four", "five"],
    "never closed": ["one", "two", "three", '"four', "five"],
}
LINES = {"inside": 3, "at the start": 5, "at the end": 4}
LINES |= {"behind a closed field": 3, "never closed": 5}


@pytest.mark.parametrize("name", ["events.csv", "events.tsv", "events.tsv.gz"])
@pytest.mark.parametrize("titles", STRAY)
def test_stray_quotes_swallow_no_rows(tmp_path, name, titles):
    rows = [f"1,{10 + i},{i + 5},{title}" for i, title in enumerate(STRAY[titles])]
    path = table(tmp_path / name, rows)
    where = rf"{name}, line {LINES[titles]}: a quote .*data\.quotes=False"
    with pytest.raises(DataError, match=where):
        prepared(path)
    data = prepared(path, quotes=False)
    assert data.vocabulary.ids.tolist() == [10, 11, 12, 13, 14]


def test_stray_quotes_in_items_and_appended_files(tmp_path):
    events = table(tmp_path / "events.csv", ["1,10,5,x", "1,11,6,x"])
    items = table(tmp_path / "items.tsv", ["10,ten,x", '11,eleven,5" wide'], "item_id,title,b\n")
    with pytest.raises(DataError, match=r"items\.tsv, line 3"):
        prepared(events, items_path=str(items), text_columns=("title",))
    later = table(tmp_path / "later.csv", ['1,10,7,5"', '1,11,8,3"'])
    with pytest.raises(DataError, match=r"later\.csv, line 2"):
        prepared(events, append=(str(later),))


@pytest.mark.parametrize("lines", [2, 1 << 18])
def test_quotes_that_belong_there(tmp_path, lines, monkeypatch, capsys):
    monkeypatch.setattr(quoting, "LINES", lines)
    titles = ['"a, b"', '"5"" disk"', '""', '"two\nlines"', '"""all"""', '"\n\n"', "plain"]
    path = table(tmp_path / "e.csv", [f"1,{i},{i + 5},{t}" for i, t in enumerate(titles)])
    assert prepared(path).vocabulary.ids.tolist() == list(range(7))
    assert "look like rows" not in capsys.readouterr().err


def test_rows_inside_a_quoted_field_are_said(tmp_path, capsys):
    path = table(tmp_path / "e.csv", ['1,10,5,"two', "1,11,6,x", '1,12,7,four"', "1,13,8,y"])
    assert prepared(path).vocabulary.ids.tolist() == [10, 13]
    assert "2 lines behind line" in capsys.readouterr().err


# -- what data is, is its content ----------------------------------------------------------------


def write_edited(path, item, size=3 << 20):
    """A table of `size` bytes with an item in the middle; its time of writing is always equal."""
    row = "1,100,5,xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx\n"
    rows = [row] * (size // len(row))
    rows[len(rows) // 2] = row.replace("100", str(item))
    path.write_text(HEADER + "".join(rows))
    os.utime(path, (1e9, 1e9))
    return path


def test_edit_of_equal_size_is_noticed(tmp_path):
    path = tmp_path / "events.csv"
    first = prepared(write_edited(path, 100))
    second = prepared(write_edited(path, 101))
    assert (first.num_items, second.num_items) == (1, 2)
    assert first.digest != second.digest
    assert first.folder != second.folder


def test_edit_of_an_appended_file_and_of_items_is_noticed(tmp_path):
    events = table(tmp_path / "events.csv", ["1,10,5,x"])
    later = tmp_path / "later.csv"
    folders = [
        prepared(events, append=(str(write_edited(later, item)),)).folder for item in (100, 101)
    ]
    assert folders[0] != folders[1]
    items = tmp_path / "items.csv"
    texts = []
    for title in ("aa", "bb"):
        table(items, [f"10,{title}"], "item_id,title\n")
        os.utime(items, (1e9, 1e9))
        data = prepared(events, items_path=str(items), text_columns=("title",))
        texts.append(data.texts["title"][1])
    assert texts == ["aa", "bb"]


def test_file_that_changes_while_it_is_read(tmp_path, monkeypatch):
    path = table(tmp_path / "events.csv", ["1,10,5,x"])
    read = digests.read_digest

    def read_and_write(file):
        value = read(file)
        if file == path:
            table(path, ["1,10,5,x", "1,11,6,x"])
        return value

    monkeypatch.setattr(digests, "read_digest", read_and_write)
    with pytest.raises(DataError, match=r"events\.csv: changed while it was read"):
        prepared(path)


def test_unchanged_files_are_not_read_again(tmp_path, monkeypatch):
    monkeypatch.setattr(digests, "SETTLED_SECONDS", -3600.0)  # as if all were written long ago
    path = table(tmp_path / "events.csv", ["1,10,5,x"])
    prepared(path)
    prepared(path)
    read = []
    real = digests.read_digest
    monkeypatch.setattr(digests, "read_digest", lambda file: read.append(file) or real(file))
    prepared(path)
    assert read == []
    kept = tmp_path / "data" / digests.FILE
    kept.write_text(kept.read_text().replace('"files"', '"fileS"'))
    prepared(path)  # a damaged file of digests is made again
    assert path in read


# -- prepared files are what was written ----------------------------------------------------------

FILES = ["offsets.npy", "users.npy", "vocabulary.json", "texts.json", "complete.json", "records"]


@pytest.mark.parametrize("name", FILES)
def test_flipped_bits_of_prepared_files_are_named(tmp_path, name):
    events = table(tmp_path / "events.csv", [f"{i % 3},{i % 5},{i + 5},x" for i in range(30)])
    items = table(tmp_path / "items.csv", ["0,tea", "1,milk"], "item_id,title\n")
    settings = {"items_path": str(items), "text_columns": ("title",)}
    data = prepared(events, **settings)
    found = [path for path in sorted(data.folder.rglob("*")) if path.is_file()]
    for file in (path for path in found if str(path.relative_to(data.folder)).startswith(name)):
        whole = file.read_bytes()
        stat = file.stat()
        for place in range(0, len(whole), max(1, len(whole) // 20)):
            flipped = bytearray(whole)
            flipped[place] ^= 1 << place % 8
            file.write_bytes(flipped)
            os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))
            with pytest.raises(DataError, match=rf"{file.name}.*[Rr]emove"):
                prepared(events, **settings)
            with pytest.raises(DataError, match=rf"{file.name}.*Remove the folder"):
                verify(data)
        file.write_bytes(whole)
    assert prepared(events, **settings).num_users == 3
    assert verify(data) > 0


def test_record_of_another_format_is_refused(tmp_path):
    events = table(tmp_path / "events.csv", ["1,10,5,x"])
    marker = prepared(events).folder / "complete.json"
    marker.write_text(json.dumps(json.loads(marker.read_text())["content"]))
    with pytest.raises(DataError, match=r"complete\.json: damaged: .*Remove the folder"):
        prepared(events)


# -- the kind of ids is known ---------------------------------------------------------------------


def test_kinds_of_files_that_differ(tmp_path):
    table(tmp_path / "day1.csv", ["1,B10,5,x"])
    table(tmp_path / "day2.csv", ["1,11,6,x"])
    pattern = tmp_path / "day*.csv"
    with pytest.raises(DataError, match=r"day2\.csv: .*Set data\.item_kind=text"):
        prepared(pattern)
    assert prepared(pattern, item_kind="text").vocabulary.ids.tolist() == ["11", "B10"]
    later = prepared(tmp_path / "day1.csv", append=(str(tmp_path / "day2.csv"),))
    assert later.vocabulary.ids.tolist() == ["B10", "11"]


@pytest.mark.parametrize("item", ["18446744073709551615", "1e5", "2.50"])
def test_numbers_that_are_names(tmp_path, item):
    path = table(tmp_path / "e.csv", [f"1,{item},5,x"])
    with pytest.raises(DataError, match=r"'item_id' holds .*[Ss]et data\.item_kind=text"):
        prepared(path)
    assert prepared(path, item_kind="text").vocabulary.ids.tolist() == [item]


@pytest.mark.parametrize("name", ["events.csv", "events.jsonl", "events.parquet"])
def test_integers_by_configuration(tmp_path, name):
    import polars as pl

    path = tmp_path / name
    frame = pl.DataFrame({"user_id": ["07", "8"], "item_id": [1, 2], "timestamp": [5, 6]})
    write = {"csv": "write_csv", "jsonl": "write_ndjson", "parquet": "write_parquet"}
    getattr(frame, write[path.suffix[1:]])(path)
    data = prepared(path, user_kind="integer", item_kind="text")
    assert data.users.tolist() == [7, 8]
    assert data.vocabulary.ids.tolist() == ["1", "2"]
    getattr(frame.with_columns(user_id=pl.Series(["7", "x"])), write[path.suffix[1:]])(path)
    with pytest.raises(DataError, match=r"'user_id' holds 'x', .*data\.user_kind=integer"):
        prepared(path, user_kind="integer")


@pytest.mark.parametrize(
    ("last", "ids"), [('"B7"', {"1", "B7"}), ("1", {1}), ('"007"', {"1", "007"})]
)
def test_kinds_of_json_lines_are_those_of_all_rows(tmp_path, last, ids):
    line = '{"user_id": 1, "item_id": %s, "timestamp": %d}\n'
    path = tmp_path / "events.jsonl"
    path.write_text(line % (1, 5) * 10_000 + line % (last, 6))
    assert set(prepared(path).vocabulary.ids.tolist()) == ids


@pytest.mark.parametrize("value", ['"7"', "1.5", "true", "[1]"])
def test_json_values_that_are_not_of_the_kind_of_those_before(tmp_path, value):
    path = tmp_path / "events.jsonl"
    line = '{"user_id": 1, "item_id": %s, "timestamp": 5}\n'
    path.write_text(line % 1 * 10_000 + line % value)
    with pytest.raises(DataError, match=r"events\.jsonl: .* several kinds: .*data\.item_kind=text"):
        prepared(path)
