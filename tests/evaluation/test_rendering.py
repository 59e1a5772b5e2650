"""Evaluations as text: what stands in the documents is what the files under results/ say."""

import json
import pathlib

import pytest

from jaxrec.evaluation import printing, rendering
from jaxrec.runtime.program import exit_status

ROOT = pathlib.Path(__file__).parents[2]
RESULT = ROOT / "results" / "completejourney.json"


def test_the_table_of_the_readme_is_the_committed_result():
    markdown = rendering.markdown(json.loads(RESULT.read_text()))
    assert markdown in (ROOT / "README.md").read_text()


def test_the_committed_page_is_made_of_the_committed_results():
    assert (ROOT / "docs" / "quality.md").read_text() == rendering.page(ROOT / "results")


def test_a_page_has_every_part_of_the_targets(tmp_path):
    value = json.loads(RESULT.read_text())
    first = value["rows"][0]
    first["kinds"]["earlier"]["metrics"]["recall@10"]["mean"] = 0.4321
    (tmp_path / "changed.json").write_text(json.dumps(value))
    (tmp_path / "benchmark.json").write_text('{"benchmark": "attention", "rows": []}')
    page = rendering.page(tmp_path)
    assert page.count("\n## ") == 1
    assert "\n## changed\n" in page
    assert "0.432 [" in page
    targets = first["kinds"]["earlier"]["targets"]
    assert f"| earlier ({targets:,} targets) |" in page
    users = first["buckets"]["1000+"]["users"]
    assert f"| 1000+ ({users:,} users) |" in page
    assert rendering.markdown(value) not in page  # the short form has no parts


def test_the_reading_explains_the_rows_that_the_page_has():
    older = {"rows": [{"name": "compressed"}, {"name": "recent-only"}]}
    text = " ".join(rendering.reading([older]).split())
    assert "`recent-only`: the name of two rows in older results." in text
    assert "- `without-tokens`" not in text
    assert "gap closed" not in text
    newer = {"rows": [{"name": "without-tokens"}, {"name": "recent"}], "gap_closed": {"mrr": {}}}
    text = rendering.reading([newer])
    assert "- `without-tokens`" in text
    assert "- `recent`" in text
    assert "`recent-only`" not in text
    assert "`gap closed` is" in text


def test_command(tmp_path, capsys):
    printing.main([str(RESULT)])
    assert "recall@10 by when the user last had the target" in capsys.readouterr().out
    printing.main(["--markdown", str(RESULT)])
    assert capsys.readouterr().out.startswith("| row | Recall@10 |")
    printing.main(["--page", str(ROOT / "results")])
    assert capsys.readouterr().out == rendering.page(ROOT / "results")


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "files, or --page=FOLDER, are needed"),
        (["--page", "/nowhere"], "/nowhere: no such folder"),
        (["/nowhere.json"], "/nowhere.json: no such file"),
        ([str(ROOT / "results" / "attention.json")], "not the result of an evaluation"),
    ],
)
def test_what_is_no_result(argv, message, capsys):
    assert exit_status("jaxrec report", printing.main, argv) == 2
    errors = capsys.readouterr().err
    assert message in errors
    assert errors.count("\n") == 1
