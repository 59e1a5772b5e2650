"""Tables as JSON, CSV and Markdown."""

import csv
import json

import numpy as np
import pytest

from jaxrec.errors import WorkdirError
from jaxrec.evaluation.intervals import Interval
from jaxrec.experiments import result_table
from jaxrec.experiments.result_table import Cell, Experiment, Line
from tests.experiments import tiny

ROWS = [
    {
        "name": "a",
        "n": 12345,
        **result_table.spread("recall", Interval(0.25, 0.2, 0.3)),
        "by": [1, 2],
    },
    {"name": "b", "n": 3, "recall": 1e-5, "more": True, "by": [3, 4]},
]


def made():
    line = Line("title", "n", "recall", "n of x", "Recall")
    cells = [Cell(row["name"], lambda: {}) for row in ROWS]
    experiment = Experiment("length", "Title", "Question?", "Method.", "Reading.", cells, [line])
    rows = [dict(ROWS[0], n=np.int64(12345)), dict(ROWS[1], nan=float("nan"))]
    return result_table.result(experiment, rows, tiny.config(), {"seeds": (0, 1)}, "python -m x")


def test_result_is_json_with_what_repeats_it(tmp_path):
    value = made()
    result_table.write(tmp_path, value)
    assert result_table.read(tmp_path / "length.json") == json.loads(json.dumps(value)) == value
    assert value["rows"][0]["n"] == 12345
    assert value["rows"][1]["nan"] is None
    assert value["protocol"] == {"seeds": [0, 1]}
    assert value["config"]["experiments"]["last"] == 2
    assert value["versions"]["jax"]
    assert value["plots"][0]["y"] == "recall"
    text = (tmp_path / "length.md").read_text()
    assert text.startswith("# Title\n\nQuestion?\n\n| name | n | recall | more | nan |\n")
    assert "python -m x" in text


def test_markdown_puts_intervals_into_one_cell():
    heads, lines = result_table.grid(ROWS)
    assert heads == ["name", "n", "recall", "more"]
    assert lines[0] == ["a", "12,345", "0.2500 [0.2000, 0.3000]", ""]
    assert lines[1] == ["b", "3", "1.0e-05", "True"]


def test_parts_are_tables_of_their_own():
    rows = [{"part": "x", "a": 1}, {"part": "x", "a": 2}, {"part": "y", "b": 3}]
    first, second = result_table.markdown(rows).split("\n\n")
    assert first == "| part | a |\n| --- | --- |\n| x | 1 |\n| x | 2 |"
    assert second == "| part | b |\n| --- | --- |\n| y | 3 |"


def test_csv_has_every_column(tmp_path):
    (tmp_path / "x.csv").write_text(result_table.as_csv(ROWS))
    with open(tmp_path / "x.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert rows[0]["recall_low"] == "0.2"
    assert json.loads(rows[0]["by"]) == [1, 2]
    assert rows[1]["recall_low"] == ""
    assert rows[1]["more"] == "True"


@pytest.mark.parametrize("text", ["", "[1]", "{}", '{"experiment": "x", "rows": []}'])
def test_other_files_are_refused(tmp_path, text):
    file = tmp_path / "x.json"
    file.write_text(text)
    with pytest.raises(WorkdirError, match="no table of an experiment"):
        result_table.read(file)
    with pytest.raises(WorkdirError, match="no table of an experiment"):
        result_table.read(tmp_path / "missing.json")
