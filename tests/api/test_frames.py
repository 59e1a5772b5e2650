"""Frames of every library in: the same content is the same file, odd input is refused by name."""

import datetime
import sys

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxrec.api import event_file, frames, settings
from jaxrec.config import Config
from jaxrec.errors import ConfigError, DataError
from jaxrec.serving import event_files

SECONDS = [1_700_000_000, 1_700_003_600, 1_700_089_999]
UTC = datetime.UTC
ISO = [f"{datetime.datetime.fromtimestamp(s, UTC):%Y-%m-%dT%H:%M:%S}" for s in SECONDS]
NAIVE = [datetime.datetime.fromtimestamp(s, UTC).replace(tzinfo=None) for s in SECONDS]
BERLIN = datetime.timezone(datetime.timedelta(hours=1))
MAKE = {
    "pandas": pd.DataFrame,
    "polars": pl.DataFrame,
    "lazy": pl.LazyFrame,
    "pyarrow": lambda columns: pa.table({k: pa.array(v) for k, v in columns.items()}),
}
FORMS = {
    "seconds": SECONDS,
    "floats": [float(s) for s in SECONDS],
    "iso": ISO,
    "iso with zone": [f"{text}Z" for text in ISO],
    "datetimes": NAIVE,
    "datetimes with zone": [datetime.datetime.fromtimestamp(s, BERLIN) for s in SECONDS],
}


def config(**values):
    made = Config()
    made.data.dataset = "table"
    settings.override(made, values)
    return made.data


def table(frame, **values):
    return event_file.table(frame, config(**values), "events").frame


def columns(time, user=(1, 2, 1), item=("a", "b", "c")):
    return {"user_id": list(user), "item_id": list(item), "timestamp": list(time)}


def read_again(frame, tmp_path, **values):
    """What the reader of tables makes of the stored file: users, items, seconds."""
    path = tmp_path / "events.parquet"
    event_file.write(frame, path)
    users, items, times = event_files.read_events(str(path), config(**values))[:3]
    return users.tolist(), items.tolist(), (times.astype("datetime64[s]").astype(int)).tolist()


@pytest.mark.parametrize("form", FORMS)
def test_libraries_and_forms_of_time(form, tmp_path):
    stored = {name: table(make(columns(FORMS[form]))) for name, make in MAKE.items()}
    assert len({event_file.digest(frame) for frame in stored.values()}) == 1
    assert read_again(stored["pandas"], tmp_path) == ([1, 2, 1], ["a", "b", "c"], SECONDS)


def test_dates_and_coarse_datetimes(tmp_path):
    days = [datetime.date(2024, 1, d) for d in (1, 2, 3)]
    expected = [int(np.datetime64(day, "s").astype(int)) for day in days]
    frames_of_days = {
        "objects": pd.DataFrame(columns(days)),
        "seconds": pd.DataFrame(columns(np.asarray(days, "datetime64[s]"))),
        "polars": pl.DataFrame(columns(days)),
        "zone": pd.DataFrame(columns(pd.to_datetime(days).tz_localize("UTC"))),
    }
    for name, frame in frames_of_days.items():
        assert read_again(table(frame), tmp_path / name)[2] == expected, name


def test_naive_datetimes_are_in_the_zone_of_the_settings(tmp_path):
    frame = table(pd.DataFrame(columns(NAIVE)))
    read = read_again(frame, tmp_path, **{"data.time_zone": "Europe/Berlin"})[2]
    assert read == [s - 3600 for s in SECONDS]


def test_pandas_kinds(tmp_path):
    frame = pd.DataFrame(
        {
            "user_id": pd.array([1, 2, 1], "Int64"),
            "item_id": pd.Categorical(["a", "b", "a"]),
            "timestamp": pd.array(SECONDS, "Int64"),
            "unused": [object(), None, 3],
        },
        index=["x", "y", "z"],
    )
    stored = table(frame)
    assert stored.columns == ["user_id", "item_id", "timestamp"]
    assert read_again(stored, tmp_path) == ([1, 2, 1], ["a", "b", "a"], SECONDS)


@pytest.mark.parametrize(
    "frame",
    [
        pd.DataFrame(columns(SECONDS, user=pd.array([1, None, 2], "Int64"))),
        pd.DataFrame(columns(SECONDS, item=["a", None, float("nan")])),
        pd.DataFrame(columns([1.7e9, float("nan"), 1.7e9])),
        pd.DataFrame(columns([pd.Timestamp(2024, 1, 1), pd.NaT, None])),
        pl.DataFrame(columns(SECONDS, user=[1, None, 2])),
    ],
)
def test_missing_values_are_nulls(frame):
    assert sum(table(frame).null_count().row(0)) > 0


REFUSED = [
    (columns(SECONDS, user=[1.0, 2.0, 3.0]), "'user_id' has type Float64.*convert the column"),
    (columns(SECONDS, user=[1, None, 3]), "1 rows are null.*Int64"),
    (columns(SECONDS, item=["a", 1, "b"]), "'item_id' holds int, str values"),
    (columns(SECONDS, item=[2**70, 1, 2]), "beyond int64"),
    (columns([]), "no rows"),
    ({"userId": [1], "item_id": [1], "timestamp": [1]}, "'user_id' is missing.*mean 'userId'"),
    (columns([NAIVE[0], FORMS["datetimes with zone"][0], None]), "with and without a zone"),
]


@pytest.mark.parametrize(("values", "message"), REFUSED)
def test_refused(values, message):
    lengths = [len(column) for column in values.values()]
    values = {name: column[: min(lengths)] for name, column in values.items()}
    frame = pd.DataFrame({k: pd.Series(v, dtype=_kind(v)) for k, v in values.items()})
    with pytest.raises(DataError, match=message):
        table(frame)


def _kind(values):
    kinds = {type(value) for value in values if value is not None}
    return "object" if len(kinds) > 1 or kinds <= {datetime.datetime} else None


def test_columns_that_are_there_twice_are_refused():
    frame = pd.DataFrame([[1, 2, 3, 4]], columns=["user_id", "user_id", "item_id", "timestamp"])
    with pytest.raises(DataError, match="'user_id' 2 times"):
        table(frame)


@pytest.mark.parametrize("wrong", [{"user_id": [1]}, 5, None, np.zeros((2, 3))])
def test_what_is_no_frame_is_refused(wrong):
    with pytest.raises(DataError, match="no data frame"):
        table(wrong)


IDS = st.one_of(
    st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1, max_size=20),
    st.lists(st.text(st.characters(codec="utf-8", exclude_characters="\0")), min_size=1),
)


@given(users=IDS, library=st.sampled_from(["pandas", "polars", "pyarrow"]))
def test_ids_survive_a_frame(users, library):
    found, back = frames.user_ids(MAKE[library]({"user_id": users}), "user_id", "recommend")
    assert (found, back) == (users, library)


def test_users_of_every_form():
    for users in ([3, 1, 3], (3, 1, 3), np.asarray([3, 1, 3]), pl.Series([3, 1, 3])):
        assert frames.user_ids(users, "user_id", "recommend")[0] == [3, 1, 3]
    for wrong in (5, "u1", [1, None], [1.5], pd.Series([1, None], dtype="Int64"), pd.DataFrame()):
        with pytest.raises(DataError, match="recommend"):
            frames.user_ids(wrong, "user_id", "recommend")


@pytest.mark.parametrize("package", ["narwhals", "polars"])
def test_a_missing_package_is_named_with_its_extra(package, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ConfigError, match=rf"{package}: pip install 'jaxrec\[frames\]'"):
        frames.require_extra()


def test_settings_by_key():
    made = settings.resolve(None, {"user": "who"}, {"layout.tokens": 8, "eval.ks": [1, 10]})
    assert (made.data.dataset, made.data.user_column) == ("table", "who")
    assert (made.layout.tokens, made.eval.ks) == (8, (1, 10))
    given_config = Config()
    settings.resolve(given_config, {}, {"layout.tokens": 8})
    assert given_config == Config()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((None, {}, {"layout.token": 8}), "unknown config key layout.token.*layout.tokens"),
        ((None, {}, {"layout": 8}), "is a group"),
        ((None, {"user": "a"}, {"data.user_column": "b"}), "user= says it too"),
        ((None, {}, {"data.path": "x.csv"}), "first argument of fit"),
        ((None, {"item": "rank"}, {}), "recommendations have a column of that name"),
        ((None, {"item": "a", "user": "a"}, {}), "three columns are needed"),
        (({"layout": 1}, {}, {}), "a dict; a jaxrec Config"),
        (("nothing.py", {}, {}), "not a Python file"),
    ],
)
def test_wrong_settings_are_refused(arguments, message):
    with pytest.raises(ConfigError, match=message):
        settings.resolve(*arguments)
