"""One bad value in the events of every published layout: refused, with the file and the column."""

import gzip
import json
from pathlib import Path

import polars as pl
import pytest

from jaxrec.config import DataConfig
from jaxrec.data import prepare
from jaxrec.errors import DataError
from tests.data import upstream

ROW = 7
# layout -> file of events, its columns of users, items and times
EVENTS = {
    "merrec": ("20230501/000000000001.parquet", "user_id", "product_id", "stime"),
    "ebnerd": ("train/behaviors.parquet", "user_id", "article_ids_clicked", "impression_time"),
    "amazon 2014": ("ratings_Books.csv", 0, 1, 3),
    "amazon 2023": ("Books.jsonl.gz", "user_id", "parent_asin", "timestamp"),
    "kuairand": ("log_standard_4_22_to_5_08_pure.csv", "user_id", "video_id", "time_ms"),
    "yambda": ("multi_event.parquet", "uid", "item_id", "timestamp"),
    "yambda sequential": ("multi_event.parquet", "uid", "item_id", "timestamp"),
    "movielens": ("ratings.csv", "userId", "movieId", "timestamp"),
    "table csv": ("events.csv", "user_id", "item_id", "timestamp"),
    "table jsonl": ("events.jsonl", "user_id", "item_id", "timestamp"),
    "table parquet": ("events.parquet", "user_id", "item_id", "timestamp"),
}
TABLES = ["table csv", "table jsonl", "table parquet"]
LISTS = {("ebnerd", 1), ("yambda sequential", 1), ("yambda sequential", 2)}
SECONDS, MILLISECONDS = upstream.START + 1000, (upstream.START + 1000) * 1000


def spoil(path, column, value, dtype=None, inside=False):
    """Writes `value` into a column of one row; inside: into the first element of its list."""
    if path.suffix == ".parquet":
        frame = pl.read_parquet(path)
        dtype = dtype or frame.schema[column]
        values = frame[column].to_list()
        row = min(ROW, len(values) - 1)
        values[row] = [value, *values[row][1:]] if inside else value
        frame.with_columns(pl.Series(column, values, dtype)).write_parquet(path)
        return
    read = gzip.open if path.suffix == ".gz" else open
    with read(path, "rt") as stream:
        lines = stream.read().splitlines()
    if ".jsonl" in path.name:
        lines[ROW] = json.dumps(json.loads(lines[ROW]) | {column: value})
    else:
        place = column if isinstance(column, int) else lines[0].split(",").index(column)
        fields = lines[ROW].split(",")
        fields[place] = "" if value is None else str(value)
        lines[ROW] = ",".join(fields)
    with read(path, "wt") as stream:
        stream.write("\n".join(lines) + "\n")


def refused(name, folder, which, value, match, dtype=None):
    dataset, write = upstream.ALL[name]
    keys = write(folder / "in")
    file, *columns = EVENTS[name]
    path = folder / "in" / file
    spoil(path, columns[which], value, dtype, (name, which) in LISTS)
    config = DataConfig(dataset=dataset, min_item_events=1, min_user_events=1, **keys)
    with pytest.raises(DataError, match=match) as error:
        prepare(config, folder / "out")
    assert path.name in str(error.value)
    assert not [part for part in Path(folder / "out").iterdir() if part.is_dir()]
    return str(error.value)


@pytest.mark.parametrize("which", [0, 1, 2])
@pytest.mark.parametrize("name", EVENTS)
def test_nulls(name, which, tmp_path):
    message = refused(name, tmp_path, which, None, "null|NaN|float")
    column = EVENTS[name][1 + which]
    if isinstance(column, str) and name != "ebnerd":  # whose two files share names of columns
        assert repr(column) in message


@pytest.mark.parametrize(
    "name", ["merrec", "ebnerd", "kuairand", "yambda", "yambda sequential", "movielens", *TABLES]
)
def test_ids_beyond_int64(name, tmp_path):
    refused(name, tmp_path, 0, 2**63, "9223372036854775808|UInt64|u64", pl.UInt64)


@pytest.mark.parametrize(
    ("name", "value", "match"),
    [
        ("amazon 2014", MILLISECONDS, "look like milliseconds"),
        ("amazon 2023", SECONDS, "look like seconds"),
        ("kuairand", SECONDS, "look like seconds"),
        ("yambda", MILLISECONDS, "look like milliseconds"),
        ("yambda sequential", MILLISECONDS, "look like milliseconds"),
        ("movielens", MILLISECONDS, "look like milliseconds"),
        *((name, MILLISECONDS, "look like milliseconds") for name in TABLES),
    ],
)
def test_one_time_of_another_unit(name, value, match, tmp_path):
    dtype = {"yambda": pl.Int64, "yambda sequential": pl.List(pl.Int64)}.get(name)
    refused(name, tmp_path, 2, value, match, dtype)


@pytest.mark.parametrize("name", ["merrec", "ebnerd"])
def test_times_of_the_wrong_kind(name, tmp_path):
    """Milliseconds where datetimes belong."""
    dataset, write = upstream.ALL[name]
    keys = write(tmp_path / "in")
    file, _, _, column = EVENTS[name]
    path = tmp_path / "in" / file
    frame = pl.read_parquet(path).with_columns(pl.col(column).dt.epoch("ms"))
    frame.write_parquet(path)
    config = DataConfig(dataset=dataset, min_item_events=1, min_user_events=1, **keys)
    with pytest.raises(DataError, match=r"column types .* differ|look like milliseconds") as error:
        prepare(config, tmp_path / "out")
    assert path.name in str(error.value)


@pytest.mark.parametrize("name", ["merrec", "ebnerd"])
def test_times_with_and_without_a_zone(name, tmp_path):
    dataset, write = upstream.ALL[name]
    keys = write(tmp_path / "in")
    path = tmp_path / "in" / EVENTS[name][0]
    frame = pl.read_parquet(path)
    column = EVENTS[name][-1]
    frame.with_columns(pl.col(column).dt.replace_time_zone("UTC")).write_parquet(path)
    config = DataConfig(dataset=dataset, min_item_events=1, min_user_events=1, **keys)
    match = {"merrec": r"001\.parquet: column types .*UTC.* differ"}.get(
        name, r"behaviors\.parquet: its times are with a time zone, unlike those of .*history"
    )
    with pytest.raises(DataError, match=match):
        prepare(config, tmp_path / "out")


@pytest.mark.parametrize(
    "name", ["amazon 2014", "amazon 2023", "kuairand", "movielens", "table csv", "table jsonl"]
)
def test_text_that_is_not_utf8(name, tmp_path):
    dataset, write = upstream.ALL[name]
    keys = write(tmp_path / "in")
    path = tmp_path / "in" / EVENTS[name][0]
    read = gzip.open if path.suffix == ".gz" else open
    with read(path, "rb") as stream:
        content = stream.read()
    place = {"amazon 2014": b"USER", "amazon 2023": b"AG"}.get(name, b"1")
    with read(path, "wb") as stream:
        stream.write(place.join([b"\xff\xfe" + part for part in content.split(place)]))
    config = DataConfig(dataset=dataset, min_item_events=1, min_user_events=1, **keys)
    with pytest.raises(DataError, match=path.name.replace(".", r"\.")):
        prepare(config, tmp_path / "out")


@pytest.mark.parametrize(
    ("name", "file", "column"),
    [
        ("merrec", "20230501/000000000001.parquet", "product_id"),
        ("merrec", "20230501/000000000000.parquet", "brand_name"),
        ("ebnerd", "articles.parquet", "title"),
        ("yambda", "multi_event.parquet", "event_type"),
        ("table parquet", "events.parquet", "item_id"),
    ],
)
def test_parquet_text_that_is_not_utf8(name, file, column, tmp_path):
    dataset, write = upstream.ALL[name]
    keys = write(tmp_path / "in")
    path = tmp_path / "in" / file
    frame = pl.read_parquet(path).with_columns(pl.lit("QQQQ").alias(column))
    frame.write_parquet(path, compression="uncompressed", statistics=False)
    content = path.read_bytes()
    assert b"QQQQ" in content
    path.write_bytes(content.replace(b"QQQQ", b"Q\xff\xfeQ"))
    config = DataConfig(dataset=dataset, min_item_events=1, min_user_events=1, **keys)
    with pytest.raises(DataError, match=path.name.replace(".", r"\.")):
        prepare(config, tmp_path / "out")
