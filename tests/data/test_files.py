import gzip

import numpy as np
import polars as pl
import pytest

from jaxrec.config import DataConfig
from jaxrec.data import datasets, prepare
from jaxrec.data.datasets import files
from jaxrec.data.digests import read_digest
from jaxrec.errors import DataError
from tests.data import source

GOOD = {"user_id": [1, 1, 2], "item_id": ["a", "b", "a"], "timestamp": [5, 6, 7]}


def write(path, columns, **changes):
    frame = pl.DataFrame({**columns, **changes})
    if path.suffix == ".csv":
        frame.write_csv(path)
    else:
        frame.write_parquet(path)
    return path


def read(path, **settings):
    config = DataConfig(dataset="table", path=str(path), **settings)
    return source.read(config, path.parent)


@pytest.mark.parametrize("name", ["events.parquet", "events.csv"])
def test_reads_int_and_text_ids(tmp_path, name):
    events = read(write(tmp_path / name, GOOD))[0]
    assert events.user.tolist() == [1, 1, 2]
    assert events.item.tolist() == ["a", "b", "a"]
    assert events.time.tolist() == [5, 6, 7]


def test_compressed_and_tab_separated_text(tmp_path):
    with gzip.open(tmp_path / "events.csv.gz", "wt") as stream:
        stream.write("user_id,item_id,timestamp\n1,2,3\n")
    assert read(tmp_path / "events.csv.gz")[0].time.tolist() == [3]
    (tmp_path / "events.tsv").write_text("user_id\titem_id\ttimestamp\n1\t2\t3\n")
    assert read(tmp_path / "events.tsv")[0].item.tolist() == [2]


def test_glob_reads_files_in_order(tmp_path):
    for part, time in (("b", 8), ("a", 5)):
        write(tmp_path / f"part-{part}.parquet", GOOD, timestamp=[time, time + 1, time + 2])
    events = read(tmp_path / "part-*.parquet")[0]
    assert events.time.tolist() == [5, 6, 7, 8, 9, 10]


def test_file_name_with_brackets_is_no_glob(tmp_path):
    assert len(read(write(tmp_path / "events[1].parquet", GOOD))[0]) == 3


def test_files_of_different_types_are_refused(tmp_path):
    write(tmp_path / "a.parquet", GOOD)
    write(tmp_path / "b.parquet", GOOD, item_id=[1, 2, 3])
    with pytest.raises(DataError, match=r"b\.parquet: column types .*Int64.* differ .*a\.parquet"):
        read(tmp_path / "*.parquet")


def test_configured_names_and_iso_times(tmp_path):
    (tmp_path / "e.csv").write_text(
        "who,what,when\nx,1,2024-01-01T00:00:01Z\ny,2,2024-01-01T02:00:00+02:00\n"
    )
    raw = read(tmp_path / "e.csv", user_column="who", item_column="what", time_column="when")
    assert raw[0].time.tolist() == [1704067201, 1704067200]


def test_datetime_columns_are_utc_seconds(tmp_path):
    moments = pl.Series(["2024-01-01 00:00:00"] * 3).str.to_datetime()
    naive = read(write(tmp_path / "n.parquet", GOOD, timestamp=moments))[0]
    zoned = moments.dt.replace_time_zone("Europe/Berlin")
    berlin = read(write(tmp_path / "z.parquet", GOOD, timestamp=zoned))[0]
    days = read(write(tmp_path / "d.parquet", GOOD, timestamp=moments.dt.date()))[0]
    assert naive.time.tolist() == days.time.tolist() == [1704067200] * 3
    assert berlin.time.tolist() == [1704067200 - 3600] * 3


def test_missing_column_names_file_and_columns(tmp_path):
    for name in ("events.parquet", "events.csv"):
        file = write(tmp_path / name, GOOD)
        with pytest.raises(DataError, match=rf"{name}.*'when' is missing.*'user_id', 'item_id'"):
            read(file, time_column="when")


@pytest.mark.parametrize("name", ["events.parquet", "events.csv"])
def test_empty_file_and_empty_table(tmp_path, name):
    (tmp_path / name).write_bytes(b"")
    with pytest.raises(DataError, match=rf"{name}: the file is empty"):
        read(tmp_path / name)
    write(tmp_path / name, {key: values[:0] for key, values in GOOD.items()})
    with pytest.raises(DataError, match=rf"{name}: no rows"):
        read(tmp_path / name)


def test_damaged_parquet_names_the_file(tmp_path):
    file = write(tmp_path / "events.parquet", GOOD)
    content = file.read_bytes()
    half = content[: len(content) // 2]
    for damaged in (half, content[:-20] + bytes(20), b"PAR1" + bytes(100), b"not parquet at all"):
        file.write_bytes(damaged)
        with pytest.raises(DataError, match=r"events\.parquet: cannot be read, the file is dam"):
            read(file)


def test_ragged_csv_names_the_file(tmp_path):
    (tmp_path / "e.csv").write_text("user_id,item_id,timestamp\n1,1,5\n1,2,6,7,8\n")
    with pytest.raises(DataError, match=r"e\.csv: cannot be read"):
        read(tmp_path / "e.csv")


@pytest.mark.parametrize("value", ["18446744073709551615", "99999999999999999999"])
def test_ids_beyond_int64_in_csv(tmp_path, value):
    (tmp_path / "e.csv").write_text(f"user_id,item_id,timestamp\n{value},1,5\n1,2,6\n")
    with pytest.raises(DataError, match=rf"'user_id' holds {value}, beyond int64"):
        read(tmp_path / "e.csv")


def test_times_beyond_int64_in_csv(tmp_path):
    (tmp_path / "e.csv").write_text(f"user_id,item_id,timestamp\n1,1,{2**70}\n")
    with pytest.raises(DataError, match=rf"'timestamp' holds {2**70}.*seconds since 1970"):
        read(tmp_path / "e.csv")


@pytest.mark.parametrize("kind", [pl.List(pl.Int64), pl.Array(pl.Int64, 2)])
def test_lists_where_single_values_belong(tmp_path, kind):
    for column in GOOD:
        lists = pl.Series([[1, 2]] * 3, dtype=kind)
        file = write(tmp_path / "e.parquet", GOOD, **{column: lists})
        with pytest.raises(DataError, match=rf"e\.parquet: column '{column}' h"):
            read(file)


def test_nulls(tmp_path):
    for column in GOOD:
        values = [None, *GOOD[column][1:]]
        for name in ("e.parquet", "e.csv"):
            file = write(tmp_path / name, GOOD, **{column: values})
            with pytest.raises(DataError, match=rf"'{column}' .*null"):
                read(file)


def test_text_that_is_no_time(tmp_path):
    file = write(tmp_path / "e.csv", GOOD, timestamp=["yesterday", "today", "x"])
    with pytest.raises(DataError, match=r"'timestamp' is text that is not an ISO.*'yesterday'"):
        read(file)


def test_milliseconds_name_the_file(tmp_path):
    file = write(tmp_path / "e.parquet", GOOD, timestamp=[1_700_000_000_000] * 3)
    with pytest.raises(DataError, match=r"e\.parquet: column 'timestamp' .*Divide by 1000"):
        read(file)


def test_paths_that_name_no_table(tmp_path):
    with pytest.raises(DataError, match="no such file"):
        read(tmp_path / "none.csv")
    with pytest.raises(DataError, match="is a folder"):
        read(tmp_path)
    (tmp_path / "e.json").write_text("{}")
    with pytest.raises(DataError, match=r"e\.json: unknown kind of file"):
        read(tmp_path / "e.json")


def test_items_table_gives_texts(tmp_path):
    events = write(tmp_path / "events.csv", GOOD)
    items = write(
        tmp_path / "items.csv", {"item_id": ["b", "a"], "title": ["B!", None], "year": [1, 2]}
    )
    _, texts = read(events, items_path=str(items), text_columns=("title", "year"))
    assert texts["item"].to_list() == ["b", "a"]
    assert texts["title"].to_list() == ["B!", None]
    assert texts["year"].to_list() == [1, 2]


def test_items_table_that_does_not_fit(tmp_path):
    events = write(tmp_path / "events.csv", GOOD)
    items = write(tmp_path / "items.csv", {"item_id": [1, 2], "title": ["x", "y"]})
    config = DataConfig(
        dataset="table", path=str(events), items_path=str(items), text_columns=("title",)
    )
    config.min_item_events = config.min_user_events = 1
    with pytest.raises(DataError, match=r"items\.csv: item ids .* integers, those of .* text"):
        prepare(config, tmp_path / "data")
    with pytest.raises(DataError, match=r"items\.csv: column 'name' is missing"):
        read(events, items_path=str(items), text_columns=("name",))
    with pytest.raises(DataError, match=r"data\.text_columns"):
        read(events, items_path=str(items))
    with pytest.raises(DataError, match=r"data\.items_path"):
        read(events, text_columns=("title",))


def test_fingerprint_follows_content_not_name(tmp_path):
    first = write(tmp_path / "a.parquet", GOOD)
    (tmp_path / "b.parquet").write_bytes(first.read_bytes())
    other = write(tmp_path / "c.parquet", GOOD, timestamp=[5, 6, 8])
    prints = [files.fingerprint([tmp_path / f"{n}.parquet"], read_digest) for n in "abc"]
    assert prints[0] == prints[1] != prints[2]
    assert np.asarray(prints[2]).shape == (1, 2)
    assert other.exists()


def table(path, *times):
    rows = "".join(f"1,{item},{time}\n" for item, time in enumerate(times))
    path.write_text(f"user_id,item_id,timestamp\n{rows}")
    return path


@pytest.mark.parametrize(
    ("times", "line", "example"),
    [
        (("03/02/2024 09:00", "04/02/2024 09:00"), 2, "03/02/2024"),
        (("2024-02-03 09:00:00", "04-02-2024 09:00:00"), 3, "04-02-2024"),
        (("2024-02-03", "", "2024/02/04"), 4, "2024/02/04"),
        (("5.6.2024", "7.6.2024"), 2, "5.6.2024"),
        (("2024-02-03", "2024-02-30"), 3, "2024-02-30"),
    ],
)
def test_text_that_is_not_iso_is_refused_whatever_its_days_are(tmp_path, times, line, example):
    match = rf"e\.csv, line {line}: column 'timestamp' .*not an ISO 8601.*'{example}.*time_format="
    with pytest.raises(DataError, match=match):
        read(table(tmp_path / "e.csv", *times))


@pytest.mark.parametrize(
    "times",
    [
        ("2024-02-03", "2024-02-03 00:00:00"),
        ("2024-02-03T00:00", "2024-02-03T00:00:00.000"),
        ("2024-02-03T00:00:00Z", "2024-02-03T01:00:00+0100"),
        ("2024-02-03 00:00:00 UTC", "2024-02-03 00:00:00 UTC"),
    ],
)
def test_iso_times_are_read(tmp_path, times):
    assert read(table(tmp_path / "e.csv", *times))[0].time.tolist() == [1706918400] * 2


@pytest.mark.parametrize(
    ("pattern", "times"),
    [
        ("%d/%m/%Y", ("03/02/2024", "04/02/2024")),
        ("%m/%d/%Y %I:%M %p", ("02/03/2024 12:00 AM", "02/04/2024 12:00 AM")),
        ("%Y%m%d", (20240203, 20240204)),
        ("%Y%m%d%H", (2024020300, 2024020400)),
        ("%d.%m.%Y %H:%M %z", ("03.02.2024 02:00 +0200", "04.02.2024 00:00 +0000")),
    ],
)
def test_times_in_a_format(tmp_path, pattern, times):
    file = table(tmp_path / "e.csv", *times)
    assert read(file, time_format=pattern)[0].time.tolist() == [1706918400, 1707004800]
    table(file, *times, "soon")
    with pytest.raises(DataError, match=r"e\.csv, line 4: .*'soon'.*not written as data\.time_f"):
        read(file, time_format=pattern)


def test_formats_and_zones(tmp_path):
    file = table(tmp_path / "e.csv", "03/02/2024 01:00")
    berlin = read(file, time_format="%d/%m/%Y %H:%M", time_zone="Europe/Berlin")[0]
    assert berlin.time.tolist() == [1706918400]
    moments = pl.Series(["2024-01-01 00:00:00"] * 3).str.to_datetime()
    with pytest.raises(DataError, match=r"holds datetimes, which need no data\.time_format"):
        read(write(tmp_path / "n.parquet", GOOD, timestamp=moments), time_format="%Y")


@pytest.mark.parametrize("unit", ["s", "ms"])
@pytest.mark.parametrize(
    ("times", "pattern"),
    [
        ((20240229, 20240301), "%Y%m%d"),
        ((2024022923, 2024030100), "%Y%m%d%H"),
        ((202402292359, 202403010000), "%Y%m%d%H%M"),
        ((20240229235959, 20240301000000), "%Y%m%d%H%M%S"),
    ],
)
def test_calendar_numbers_are_no_counts(tmp_path, times, pattern, unit):
    file = table(tmp_path / "e.csv", *times)
    with pytest.raises(DataError, match=rf"e\.csv: column .*{times[0]}.*time_format='{pattern}'"):
        read(file, time_unit=unit)


def test_counts_that_are_not_all_dates(tmp_path):
    for times in ((20240131, 20240132), (20241301, 20240131), (2024013124, 2024013123)):
        assert read(table(tmp_path / "e.csv", *times))[0].time.tolist() == list(times)


def complete(path, **settings):
    config = DataConfig(dataset="table", path=str(path), **settings)
    return source.interactions(datasets.read(config, path.parent), incomplete="drop")


WORDS = ["NULL", "\\N", "NA", "nan", "None"]


@pytest.mark.parametrize("word", WORDS)
@pytest.mark.parametrize("which", [0, 1, 2])
@pytest.mark.parametrize("ids", [("3", "4"), ("u3", "i4")])
def test_words_for_null(tmp_path, which, word, ids, capsys):
    row = [*ids, "1706918401"]
    row[which] = word
    (tmp_path / "e.csv").write_text(
        f"user_id,item_id,timestamp\n{','.join(ids)},1706918400\n{','.join(row)}\n"
    )
    column = ["user_id", "item_id", "timestamp"][which]
    with pytest.raises(DataError, match=rf"'{column}' is null.* in 1 rows, first in row 1"):
        read(tmp_path / "e.csv")
    events = complete(tmp_path / "e.csv")
    assert [str(events.user[0]), str(events.item[0]), len(events)] == [*ids, 1]
    assert events.user.dtype.kind == ("i" if ids[0] == "3" else "U")
    assert "1 of 2 rows have no user, item or time: dropped" in capsys.readouterr().err


def test_words_for_null_in_other_files(tmp_path):
    file = write(tmp_path / "e.parquet", GOOD, item_id=["a", "NULL", "b"])
    assert complete(file).item.tolist() == ["a", "b"]
    assert read(file, null_values=())[0].item.tolist() == ["a", "NULL", "b"]
    assert complete(file, null_values=("a",)).item.tolist() == ["NULL", "b"]


@pytest.mark.parametrize("rows", ["1,10,5\n1,11,6\n\n", "1,10,5\n,11,6\n", "1,10,5\n\n1,11,6\n"])
def test_nulls_in_columns_of_integers(tmp_path, rows):
    (tmp_path / "e.csv").write_text(f"user_id,item_id,timestamp\n{rows}")
    with pytest.raises(DataError, match=r"column 'user_id' is null in 1 rows, first in row \d"):
        read(tmp_path / "e.csv")


@pytest.mark.parametrize(
    ("columns", "match"),
    [
        (("item",), "'item' names the ids"),
        (("title", "item_id"), "'item_id' names the ids"),
        (("title", "title"), "named twice"),
    ],
)
def test_text_columns_that_cannot_be(tmp_path, columns, match):
    items = tmp_path / "items.csv"
    items.write_text("item_id,item,title\na,x,one\nb,y,two\n")
    file = write(tmp_path / "e.csv", GOOD)
    with pytest.raises(DataError, match=rf"data\.text_columns=.*{match}"):
        read(file, items_path=str(items), text_columns=columns)


@pytest.mark.parametrize("ids", [("005", "5"), ('"00"', "0"), ("12", "012")])
def test_leading_zeros_do_not_merge_ids(tmp_path, ids):
    rows = "".join(f"{name},{name},{time}\n" for time, name in enumerate(ids, 1706918400))
    (tmp_path / "e.csv").write_text(f"user_id,item_id,timestamp\n{rows}")
    events = read(tmp_path / "e.csv")[0]
    names = [name.strip('"') for name in ids]
    assert events.user.tolist() == events.item.tolist() == names


def test_leading_zeros_of_times_are_numbers(tmp_path):
    file = table(tmp_path / "e.csv", "01706918400", 0)
    events = read(file)[0]
    assert (events.time.tolist(), events.item.tolist()) == ([1706918400, 0], [0, 1])
