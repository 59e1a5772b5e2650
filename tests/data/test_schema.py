import json

import numpy as np
import pytest

from jaxrec.data.schema import check, check_ids, seconds
from jaxrec.data.vocabulary import Vocabulary
from jaxrec.errors import DataError


def columns(**changes):
    table = {"user_id": [1, 1, 2], "item_id": [10, 11, 10], "timestamp": [5, 6, 7], **changes}
    return {name: np.asarray(values) for name, values in table.items() if values is not None}


def refused(*parts, **changes):
    with pytest.raises(DataError) as error:
        check(columns(**changes), "events.csv")
    message = str(error.value)
    for part in ("events.csv", *parts):
        assert part in message
    return message


def test_accepts_what_is_good():
    table = check(columns(user_id=["b", "a", "b"]), "events.csv")
    assert table.user.tolist() == ["b", "a", "b"]
    assert table.item.dtype == table.time.dtype == np.int64
    assert len(table) == 3


def test_missing_column_names_it_and_what_is_there():
    refused("'item_id' is missing", "'user_id', 'timestamp'", item_id=None)


def test_other_column_names():
    table = check({"u": [1], "i": [2], "t": [3]}, "x", user="u", item="i", time="t")
    assert (table.user[0], table.item[0], table.time[0]) == (1, 2, 3)


@pytest.mark.parametrize(
    ("name", "values", "part"),
    [
        ("user_id", [1.0, 2.0, 3.0], "float64"),
        ("item_id", [1.0, np.nan, 3.0], "1 rows are null or NaN"),
        ("item_id", np.asarray(["a", None, "b"], object), "null in 1 rows, first in row 1"),
        ("item_id", np.asarray(["a", 3, "b"], object), "int, str values"),
        ("item_id", np.asarray([[1], [2, 3], "b"], object), "list, str values"),
        ("user_id", [[1, 2], [3, 4], [5, 6]], "(2,) values in every row"),
        ("timestamp", [[1, 2], [3, 4], [5, 6]], "(2,) values in every row"),
        ("user_id", [True, False, True], "bool"),
        ("user_id", np.asarray([[1], [2], [3]], "datetime64[s]").ravel(), "datetime64"),
        ("timestamp", ["a", "b", "c"], "type <U1"),
        ("timestamp", [True, False, True], "bool"),
        ("timestamp", np.asarray([1, 2, 3], "timedelta64[s]"), "timedelta64"),
    ],
)
def test_wrong_type_names_the_column(name, values, part):
    refused(repr(name), part, **{name: values})


@pytest.mark.parametrize(
    "value", [np.nan, np.inf, -np.inf], ids=["NaN", "infinite", "negative infinite"]
)
def test_null_times(value):
    refused("'timestamp'", "in 1 rows, first in row 2", timestamp=[1.0, 2.0, value])


def test_null_datetimes():
    moments = np.asarray(["2024-01-01", "NaT", "NaT"], "datetime64[s]")
    refused("'timestamp'", "in 2 rows, first in row 1", timestamp=moments)


def test_negative_times():
    refused("negative in 1 rows, first in row 1 (-6)", timestamp=[5, -6, 7])
    refused("negative", timestamp=np.asarray(["1969-12-31", "2000", "2001"], "datetime64[D]"))


@pytest.mark.parametrize("unit", [10**3, 10**6, 10**9])
def test_smaller_units_than_seconds(unit):
    times = np.asarray([1, 2, 3]) + 1_700_000_000 * unit
    refused("milliseconds", "Divide by 1000", timestamp=times)
    refused("milliseconds", timestamp=times.astype(float))


def test_times_in_floats_that_lose_seconds():
    """float32 holds times of this century in steps of two minutes."""
    times = np.asarray([1_700_000_000, 1_700_000_030, 1_700_000_060], np.float32)
    refused("'timestamp'", "float32", "in steps of 128 seconds", timestamp=times)
    assert seconds(times - times[0], "t", "x")[0].tolist() == [0, 0, 0]
    assert seconds(times.astype(np.float64) * 1e9, "t", "x", "ns")[0].tolist() == times.tolist()


def test_ids_beyond_int64():
    large = np.asarray([1, 2**63, 3], np.uint64)
    message = refused("'item_id'", str(2**63), "int64", "text", item_id=large)
    assert message.endswith("Store such ids as text")
    refused("'user_id'", str(2**70), user_id=np.asarray([1, 2**70, 3], object))
    fits = check(columns(item_id=np.asarray([1, 2**63 - 1, 3], np.uint64)), "x")
    assert fits.item[1] == 2**63 - 1


def test_no_rows():
    refused("no rows", user_id=[], item_id=[], timestamp=[])
    refused(
        "no rows",
        user_id=np.asarray([], object),
        item_id=np.asarray([], object),
        timestamp=np.asarray([], object),
    )


def test_columns_of_other_lengths():
    refused("'user_id' 3, 'item_id' 2, 'timestamp' 3", item_id=[1, 2])


def test_other_units_are_read_when_told():
    times = np.asarray([5_123, 6_000, 7_999]) + 1_700_000_000_000
    whole, rest = seconds(times, "t", "x", "ms")
    assert whole.tolist() == [1_700_000_005, 1_700_000_006, 1_700_000_007]
    assert rest.tolist() == [123_000_000, 0, 999_000_000]
    whole, rest = seconds(times.astype(float), "t", "x", "ms")
    assert whole.tolist() == [1_700_000_005, 1_700_000_006, 1_700_000_007]
    assert seconds(np.asarray([2 * 10**18]), "t", "x", "ns")[0].tolist() == [2 * 10**9]


def test_units_that_cannot_be():
    mixed = np.asarray([1_700_000_000, 1_700_000_000_000])
    with pytest.raises(DataError, match=r"reaches 1700000000000.*like milliseconds"):
        seconds(mixed, "t", "x", "s")
    with pytest.raises(DataError, match=r"holds 1700000000, as milliseconds.*look like seconds"):
        seconds(mixed, "t", "x", "ms")
    with pytest.raises(DataError, match=r"more than milliseconds.*like nanoseconds"):
        seconds(np.asarray([1_700_000_000 * 10**9]), "t", "x", "ms")
    with pytest.raises(DataError, match="no unit of time"):
        seconds(np.asarray([1e300]), "t", "x", "ms")


def test_rows_are_numbered_from_the_first_row_of_the_table():
    with pytest.raises(DataError, match="first in row 101"):
        check_ids(np.asarray(["a", None], object), "user_id", "x", 100)
    with pytest.raises(DataError, match="first in row 101"):
        seconds(np.asarray([1, -2]), "t", "x", first_row=100)


def test_fractions_of_a_second_keep_their_order():
    moments = np.asarray(
        ["2024-01-01T00:00:00.900", "2024-01-01T00:00:00.100", "2024-01-01T00:00:00.500"],
        "datetime64[ms]",
    )
    table = check(columns(timestamp=moments, item_id=[3, 1, 2]), "x")
    assert table.item.tolist() == [1, 2, 3]
    assert np.unique(table.time).tolist() == [1704067200]
    floats = check(columns(timestamp=[5.9, 5.1, 5.5], item_id=[3, 1, 2]), "x")
    assert floats.item.tolist() == [1, 2, 3]
    assert floats.time.tolist() == [5, 5, 5]


def test_vocabulary_ranks_by_frequency_then_id():
    words = Vocabulary.by_frequency(np.asarray(["b", "a", "c", "c", "a", "d"]))
    assert words.ids.tolist() == ["a", "c", "b", "d"]
    assert words.encode(["d", "zz", "a", ""]).tolist() == [4, 0, 1, 0]
    assert words.encode(["a"]).dtype == np.int32
    assert words.decode([2, 1]).tolist() == ["c", "a"]
    assert words.encode([]).shape == (0,)


@pytest.mark.parametrize("ids", [["ü", "a b", "0"], [2**62, -5, 3]])
def test_vocabulary_survives_the_disk(ids, tmp_path):
    words = Vocabulary(np.asarray(ids))
    words.save(tmp_path / "vocabulary.json")
    again = Vocabulary.load(tmp_path / "vocabulary.json")
    assert again.ids.tolist() == ids
    assert again.ids.dtype == words.ids.dtype
    assert again.encode(np.asarray(ids)).tolist() == [1, 2, 3]
    assert [file.name for file in tmp_path.iterdir()] == ["vocabulary.json"]


@pytest.mark.parametrize("content", ["", "{}", "[1]", json.dumps({"kind": "int", "ids": ["x"]})])
def test_damaged_vocabulary_names_the_file(content, tmp_path):
    file = tmp_path / "vocabulary.json"
    file.write_text(content)
    with pytest.raises(DataError, match=r"vocabulary\.json"):
        Vocabulary.load(file)


def test_vocabulary_refuses_other_ids():
    words = Vocabulary(np.asarray([5, 6]))
    with pytest.raises(DataError, match="integers"):
        words.encode(["5"])
    with pytest.raises(DataError, match=r"1\.\.2, found 0\.\.1"):
        words.decode([0, 1])
    with pytest.raises(DataError, match="6 occurs twice"):
        Vocabulary(np.asarray([6, 5, 6]))
    with pytest.raises(DataError, match="float64"):
        Vocabulary(np.asarray([1.0]))
