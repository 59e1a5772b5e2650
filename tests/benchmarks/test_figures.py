"""The page of figures is what the files under results/ say."""

import json
import pathlib

import pytest

from benchmarks import figures

ROOT = pathlib.Path(__file__).parents[2]


def test_the_committed_page_is_made_of_the_committed_results():
    assert (ROOT / "docs" / "figures.md").read_text() == figures.page(ROOT / "results")


def test_no_result_names_a_folder_of_the_machine_it_was_made_on():
    for path in sorted((ROOT / "results").rglob("*.json")):
        text = path.read_text()
        assert not any(f"{place}/" in text for place in ("/tmp", "/home", "/root", "/work")), path


def test_a_changed_figure_changes_the_page(tmp_path):
    record = json.loads((ROOT / "results" / "attention.json").read_text())
    record["rows"][0]["speedup"]["forward"] = 123.4
    (tmp_path / "attention.json").write_text(json.dumps(record))
    assert "123.4" in figures.page(tmp_path)


def test_a_table_has_a_line_per_row():
    assert figures.table(["a", "b"], [["1", "2"]]) == "| a | b |\n| --- | --- |\n| 1 | 2 |"


def test_a_missing_folder_is_named(tmp_path, capsys):
    with pytest.raises(SystemExit):
        figures.main([str(tmp_path / "none")])
    assert "none: no such folder" in capsys.readouterr().err
