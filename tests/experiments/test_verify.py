"""Rows made again: what differs, what may, which runs and commands are used."""

import json
import pathlib
import sys

import pytest

from jaxrec.errors import ConfigError, WorkdirError
from jaxrec.experiments import __main__ as command
from jaxrec.experiments import registry, verify
from jaxrec.experiments.result_table import Cell, Experiment
from jaxrec.experiments.runs import MissingRun
from tests.experiments import made_up

EVAL = "python eval.py --config=configs/x.py:full --config.layout.tokens=3 --workdir={} "
EVAL += "--config.eval.full_workdir={} --config.eval.batch_size=2 --output=results/y.json"


def test_differences_name_the_key_and_both_values():
    stored = {"a": 1.0, "b": {"c": [1, 2]}, "d": "x", "e": None, "gone": 1}
    now = {"a": 1.0 + 1e-9, "b": {"c": [1, 3]}, "d": "y", "e": False, "new": 2}
    differences = [str(one) for one in verify.differing(stored, now, 1e-6)]
    assert differences == [
        "b.c[1]: stored 2, now 3",
        "d: stored 'x', now 'y'",
        "e: stored None, now False",
        "gone: stored 1, now nothing",
        "new: stored nothing, now 2",
    ]
    assert [one.key for one in verify.differing(stored, stored | {"a": 1.01})] == ["a"]
    assert not list(verify.differing([1, 2.0], (1, 2)))
    assert [one.key for one in verify.differing([1], [1, 2], key="k")] == ["number of k"]
    assert list(verify.differing(1, True))  # True is no number
    assert not list(verify.differing(float("inf"), float("inf")))


def test_times_and_versions_are_not_compared():
    stored = {"train_seconds": 1, "p50_ms": 2, "users_per_s": 3, "git": "a", "curves": [1]}
    assert not list(verify.differing(stored, dict.fromkeys(stored, 9), skip_measured=True))
    assert len(list(verify.differing(stored, dict.fromkeys(stored, 9)))) == len(stored)
    assert list(verify.differing({"terms": 1}, {"terms": 2}, skip_measured=True))


@pytest.fixture
def remade(tmp_path, monkeypatch):
    """(file of a table, the rows that its experiment makes now)."""
    made_up.length(tmp_path)
    rows = {row["name"]: row for row in made_up.length_rows()}

    def experiment(lab):
        assert lab.fresh
        cells = [Cell(name, lambda name=name: rows[name]) for name in rows]
        return Experiment("length", "", "", "", "", cells, [])

    monkeypatch.setitem(registry.EXPERIMENTS, "length", experiment)
    return str(tmp_path / "length.json"), rows


def test_a_table_that_is_as_stored(remade, capsys):
    file, rows = remade
    assert command.main(["verify", file]) == 0
    assert capsys.readouterr().out.splitlines() == [f"{name}: as stored" for name in rows]


def test_a_value_that_differs_ends_with_status_1(remade, capsys):
    file, rows = remade
    rows["full 12"]["recall@10"] *= 1.001
    stored = made_up.length_rows()[2]["recall@10"]
    assert command.main(["verify", file]) == 1
    out = capsys.readouterr().out
    assert f"full 12: 1 values differ\n  recall@10: stored {stored!r}, now 0.12" in out
    assert "compressed 12: as stored" in out
    assert command.main(["verify", file, "--row=compressed 12"]) == 0
    assert capsys.readouterr().out == "compressed 12: as stored\n"
    assert command.main(["verify", file, "--tolerance=0.01"]) == 0
    with pytest.raises(ConfigError, match=r"--row='x': .* has 'recent window', 'compressed 12'"):
        command.main(["verify", file, "--row=x"])


def test_settings_are_those_of_the_file(remade):
    with pytest.raises(ConfigError, match=r"places alone may differ \(--config.data.cache_dir="):
        command.main(["verify", remade[0], "--config.train.steps=3"])
    assert command.main(["verify", remade[0], "--config.data.cache_dir=elsewhere"]) == 0


def test_a_run_that_is_missing_is_named_and_not_trained(tmp_path):
    made_up.length(tmp_path)
    runs = f"--runs={tmp_path / 'runs'}"
    file = str(tmp_path / "length.json")
    with pytest.raises(WorkdirError, match="row 'compressed 24' is no row of this experiment"):
        command.main(["verify", file, runs, "--row=compressed 24"])
    with pytest.raises(MissingRun, match="no finished run of this configuration"):
        command.main(["verify", file, runs, "--row=recent window"])
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("[]", "a JSON object is needed, found a list; it is no results file"),
        ("{", "no results file"),
        ('{"command": "x"}', "it has no `rows`"),
        ('{"command": "x", "rows": [{"p50": 1}]}', r"compared by python -m jaxrec\.benchmark\.c"),
        ('{"command": "x", "rows": [{"name": "a"}, {"name": "a"}]}', "two rows are called 'a'"),
        ('{"command": "rm x", "rows": [{"name": "a"}]}', "verify runs `python eval.py`"),
        ('{"command": "python -m os", "rows": [{"name": "a"}]}', "verify runs `python eval.py`"),
        ('{"command": "python eval.py --a=b", "rows": [{"name": "a"}]}', "has no --output"),
    ],
)
def test_other_files_are_refused(tmp_path, value, message):
    file = tmp_path / "x.json"
    file.write_text(value)
    with pytest.raises(WorkdirError, match=message):
        command.main(["verify", str(file)])
    with pytest.raises(ConfigError, match="a results file is needed"):
        command.main(["verify"])


@pytest.fixture
def commands(monkeypatch):
    """(commands that were run, what they write to --output)."""
    ran, written = [], {}

    def run(argv):
        ran.append(argv)
        outputs = [text.partition("=")[2] for text in argv if text.startswith("--output=")]
        if outputs:
            assert outputs[0] != "results/y.json"
            pathlib.Path(outputs[0]).write_text(json.dumps(written["value"]))

    monkeypatch.setattr(verify, "run", run)
    return ran, written


def test_an_evaluation_is_made_beside_its_file(tmp_path, commands, capsys):
    ran, written = commands
    rows = [
        {"name": name, "metrics": {"recall@10": {"mean": m}}} for name, m in (("a", 1), ("b", 2))
    ]
    for folder in ("run", "full"):
        (tmp_path / folder).mkdir()
    value = {"command": EVAL.format(tmp_path / "run", tmp_path / "full"), "rows": rows}
    file = tmp_path / "y.json"
    file.write_text(json.dumps(value))
    written["value"] = json.loads(json.dumps(value))
    assert command.main(["verify", str(file)]) == 0
    assert capsys.readouterr().out == "a: as stored\nb: as stored\n"
    assert ran[0][:3] == [sys.executable, "eval.py", "--config=configs/x.py:full"]
    written["value"]["rows"].pop(0)
    written["value"]["rows"][0]["metrics"]["recall@10"]["mean"] = 2.5
    assert command.main(["verify", str(file), "--row=b"]) == 1
    assert "  metrics.recall@10.mean: stored 2, now 2.5\n" in capsys.readouterr().out
    assert ran[1][-1] == "--config.eval.mode=b"
    assert command.main(["verify", str(file)]) == 1
    assert "a: 2 values differ" in capsys.readouterr().out  # the row is not there any more
    assert json.loads(file.read_text()) == value


def test_missing_runs_of_an_evaluation_are_trained_when_asked(tmp_path, commands):
    ran, written = commands
    run, full = tmp_path / "run", tmp_path / "full"
    value = {"command": EVAL.format(run, full), "rows": [{"name": "a", "x": 1}]}
    file = tmp_path / "y.json"
    file.write_text(json.dumps(value))
    written["value"] = value
    with pytest.raises(WorkdirError, match=r"run: no such run; --train trains it first \(python t"):
        command.main(["verify", str(file)])
    assert not ran
    assert command.main(["verify", str(file), "--train"]) == 0
    shared = ["--config=configs/x.py:full", "--config.layout.tokens=3"]
    assert [argv[1:] for argv in ran[:2]] == [
        ["train.py", *shared, f"--workdir={run}"],
        ["train.py", *shared, "--config.layout.mode=full", f"--workdir={full}"],
    ]
    run.mkdir()
    full.mkdir()
    assert command.main(["verify", str(file), "--train"]) == 0
    assert [argv[1] for argv in ran] == ["train.py", "train.py", "eval.py", "eval.py"]


def test_files_of_several_data_sets_and_rows_with_their_own_command(tmp_path, commands, capsys):
    ran, written = commands
    python = "python -m benchmarks.peers.compare --output=results/y.json"
    groups = [
        {"data": data, "rows": [{"name": "a", "x": x}, {"name": "b", "x": x, "command": own}]}
        for data, x, own in (("d1", 1, f"{python} --one"), ("d2", 2, f"{python} --two"))
    ]
    file = tmp_path / "y.json"
    written["value"] = {"command": python, "data": groups}
    file.write_text(json.dumps(written["value"]))
    assert command.main(["verify", str(file)]) == 0
    names = {line.partition(":")[0] for line in capsys.readouterr().out.splitlines()}
    assert names == {"d1/a", "d1/b", "d2/a", "d2/b"}
    assert [argv[4:] for argv in ran] == [[], ["--one"], ["--two"]]
    assert command.main(["verify", str(file), "--row=d2/b"]) == 0
    assert ran[3][4:] == ["--two"]
    with pytest.raises(ConfigError, match="leave --train out"):
        command.main(["verify", str(file), "--train"])


def test_a_command_that_fails_is_an_error(capfd):
    with pytest.raises(WorkdirError, match="status 3 of: python -c 'print"):
        verify.run([sys.executable, "-c", "print('why'); raise SystemExit(3)"])
    out, err = capfd.readouterr()
    assert (out, "why" in err) == ("", True)
