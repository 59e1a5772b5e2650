"""Result files that a user names and that hold something else: one line, status 2."""

import copy
import json
import pathlib
import sys

import numpy as np
import pytest

from jaxrec.benchmark import compare, grid
from jaxrec.cli import tune
from jaxrec.cli.main import run
from jaxrec.errors import DataError, JaxrecError, WorkdirError
from jaxrec.evaluation import rank_file
from jaxrec.experiments import __main__ as experiments
from jaxrec.experiments import result_table, verify
from tests.attacks import hostile

ROOT = pathlib.Path(__file__).parents[2]
RESULT = ROOT / "results" / "completejourney.json"
TABLES = ROOT / "results" / "experiments"


def broken(value, most=40):
    """(what, copy) of a JSON value in which one part is missing or of another kind."""
    places = []

    def walk(part, path):
        keys = part if isinstance(part, dict) else range(min(len(part), 1))
        for key in keys:
            places.append([*path, key])
            if isinstance(part[key], dict | list):
                walk(part[key], [*path, key])

    walk(value, [])
    chosen = np.random.default_rng(0).permutation(len(places))[:most]
    odd = [None, 7, "x", [], {}, [[]], {"a": 1}, float("nan"), "DELETE"]
    for number, index in enumerate(chosen):
        changed, path = copy.deepcopy(value), places[index]
        part = changed
        for key in path[:-1]:
            part = part[key]
        if odd[number % len(odd)] == "DELETE":
            del part[path[-1]]
        else:
            part[path[-1]] = odd[number % len(odd)]
        yield f"{path} {odd[number % len(odd)]!r}", changed


def one_line(capsys, status, *words):
    """The command ended with status 2 and one line with all words."""
    said = [line for line in capsys.readouterr().err.splitlines() if line]
    assert status == 2, said
    assert len(said) == 1, said
    assert all(word in said[0] for word in words), said


@pytest.mark.parametrize("flags", [[], ["--markdown"], ["--verbose"]])
def test_report(tmp_path, capsys, flags):
    file = tmp_path / "r.json"
    for content in hostile.NOT_OBJECTS.values():
        file.write_bytes(content)
        one_line(capsys, run(["report", *flags, str(file)]), "r.json", "jaxrec evaluate")
    refused = 0
    for _, content in broken(json.loads(RESULT.read_text())):
        file.write_text(json.dumps(content))
        status = run(["report", *flags, str(file)])  # 0: what is shown does not need this part
        refused += status == 2
        if status:
            one_line(capsys, status, "r.json", "jaxrec evaluate")
        capsys.readouterr()
    assert refused > 0


def test_the_page_of_a_folder(tmp_path, capsys):
    file = tmp_path / "r.json"
    for what, content in hostile.NOT_OBJECTS.items():
        file.write_bytes(content)
        status = run(["report", f"--page={tmp_path}"])
        if what in ("a list", "a text", "null", "a number", "an object that is deep inside"):
            assert status in (0, 2)  # other files may lie there
        else:
            one_line(capsys, status, "r.json")
        capsys.readouterr()
    for _, content in broken(json.loads(RESULT.read_text())):
        file.write_text(json.dumps(content))
        status = run(["report", f"--page={tmp_path}"])
        if status:
            one_line(capsys, status, str(tmp_path))
        capsys.readouterr()


def test_compared_runs(tmp_path, capsys):
    ranks = rank_file.Ranks(*(np.arange(4, dtype=np.int32) for _ in range(4)), None)
    for run_folder in ("a", "b"):
        (tmp_path / run_folder).mkdir()
        rank_file.save(tmp_path / run_folder / rank_file.NAME, {"full": ranks}, {"candidates": 9})
    file = tmp_path / "b" / rank_file.NAME
    with np.load(file) as stored:
        whole = dict(stored)
    contents = [content for _, content in hostile.archives()]
    changed = [whole | {"facts": np.array(text.decode(errors="replace"))} for text in facts()]
    changed += [{k: v for k, v in whole.items() if k != key} for key in whole]
    changed += [whole | {key: whole[key][:2]} for key in whole if key != "facts"]
    changed += [whole | {key: whole[key].astype(float)} for key in whole if key != "facts"]
    changed += [{k: v if k == "facts" else v.reshape(2, 2) for k, v in whole.items()}]
    for arrays in changed:
        np.savez_compressed(file, **arrays)
        contents.append(file.read_bytes())
    for content in contents:
        file.write_bytes(content)
        status = run(["compare", str(tmp_path / "a"), str(tmp_path / "b")])
        one_line(capsys, status, "ranks.npz", "jaxrec evaluate")


def facts():
    return [c for what, c in hostile.NOT_OBJECTS.items() if what not in ("no UTF-8", "UTF-16")]


def experiments_say(monkeypatch, capsys, *argv):
    monkeypatch.setattr(sys, "argv", ["jaxrec.experiments", *map(str, argv)])
    status = experiments.program()
    return status, [line for line in capsys.readouterr().err.splitlines() if line]


def test_tables_of_experiments(tmp_path, monkeypatch, capsys):
    file, whole = tmp_path / "length.json", json.loads((TABLES / "length.json").read_text())
    contents = [*hostile.NOT_OBJECTS.values()]
    contents += [
        hostile.dumps({k: v for k, v in whole.items() if k != key})
        for key in ("experiment", "rows", "config", "command")
    ]
    contents += [hostile.dumps(whole | {"rows": rows}) for rows in ([1], {}, "x", None)]
    for content in contents:
        file.write_bytes(content)
        with pytest.raises(WorkdirError, match=r"length\.json: damaged.*no table of an exp"):
            result_table.read(file)
        status, said = experiments_say(monkeypatch, capsys, "report", f"--output={tmp_path}")
        assert (status, len(said)) == (2, 1)
        assert "length.json" in said[0]
    for _, content in broken(whole, 12):
        file.write_text(json.dumps(content))
        status, said = experiments_say(monkeypatch, capsys, "report", f"--output={tmp_path}")
        assert status == 0 or (len(said) == 1 and str(tmp_path) in said[0]), said


def test_reports_and_cells_of_benchmarks(tmp_path):
    report = tmp_path / "report.json"
    row = dict.fromkeys(compare.CELL, 1)
    rows = [7, {}, [7], [{}], [row | {"method": []}], [row | {"rounds_ms": "x"}], None]
    contents = [*hostile.NOT_OBJECTS.values(), *(hostile.dumps({"rows": r}) for r in rows)]
    for content in contents:
        report.write_bytes(content)
        with pytest.raises(DataError, match=r"report\.json: damaged"):
            compare.load(str(tmp_path))
    for what, content in hostile.NOT_OBJECTS.items():
        report.write_bytes(content)
        with pytest.raises(JaxrecError, match=r"report\.json: damaged.*remove it"):
            grid._stored(report)
        assert what


def test_the_study_of_a_search(tmp_path):
    file = tmp_path / tune.STUDY
    wrong = [{}, {"config": 3, "search": []}, {"config": {}, "search": [3]}, {"config": {}}]
    for content in [*hostile.NOT_OBJECTS.values(), *map(hostile.dumps, wrong)]:
        file.write_bytes(content)
        with pytest.raises(WorkdirError, match=rf"{tune.STUDY}: damaged.*name another --workdir"):
            tune._read(file)


def test_results_to_verify(tmp_path):
    file = tmp_path / "r.json"
    for content in [*hostile.NOT_OBJECTS.values(), b"{}", b'{"command": 3}']:
        file.write_bytes(content)
        with pytest.raises(WorkdirError, match=r"r\.json: damaged.*no results file"):
            verify.read(file)
