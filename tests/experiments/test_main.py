"""`python -m jaxrec.experiments` from its arguments to its files."""

import json
import signal
import subprocess
import sys

import pytest

from jaxrec.errors import ConfigError, WorkdirError
from jaxrec.experiments import __main__ as command
from jaxrec.experiments import registry, result_table
from tests.integration import tiny as integration

RECIPE = """
from tests.experiments import tiny

def get_config(seeds="1"):
    return tiny.config(seeds=tuple(range(int(seeds))))
"""


@pytest.fixture
def recipe(tmp_path):
    file = tmp_path / "recipe.py"
    file.write_text(RECIPE)
    return f"--config={file}"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["lenght"],
            r"experiment 'lenght': allowed are gap, cost, length, .*probe.*verify",
        ),
        (["length"], r"--output=FOLDER is needed"),
        (["length", "--output=x"], r"--config=FILE\.py is needed"),
        (["length", "--output=x", "--config=y.py"], r"--config=y\.py: not a Python file"),
        (
            ["length", "--output=x", "--config=configs/experiments_quick.py", "--steps=3"],
            r"'--steps=3': unknown argument",
        ),
        (["report", "--output=x", "--config.seed=1"], r"report takes"),
    ],
)
def test_wrong_arguments(arguments, message):
    with pytest.raises(ConfigError, match=message):
        command.main(arguments)


def test_program_ends_with_one_line(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["experiments", "length"])
    assert command.program() == 2
    assert capsys.readouterr().err == (
        "jaxrec.experiments: error: --output=FOLDER is needed: where tables and plots go\n"
    )

    def interrupted(argv):
        raise KeyboardInterrupt

    monkeypatch.setattr(command, "main", interrupted)
    assert command.program() == 130
    assert capsys.readouterr().err == "jaxrec.experiments: interrupted\n"

    def terminated(argv):
        signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(command, "main", terminated)
    assert command.program() == 0
    assert "the same command goes on" in capsys.readouterr().err


def test_help_names_every_experiment(capsys):
    with pytest.raises(SystemExit, match="0"):
        command.main(["--help"])
    text = capsys.readouterr().out
    for name in (*registry.EXPERIMENTS, "all", "report", "verify", "--runs", "--config.KEY=VALUE"):
        assert name in text


def test_an_experiment_writes_its_files_and_is_not_made_twice(tmp_path, recipe, capsys):
    output = tmp_path / "out"
    arguments = ["longer", recipe, f"--output={output}", f"--runs={tmp_path / 'runs'}"]
    # no run of another length beside it: one training
    arguments.append("--config.experiments.lengths=3")
    assert command.main(arguments) == 0
    said = capsys.readouterr()
    assert said.out.startswith("Longer histories than in training\n\n| name | series |")
    assert said.err.count("\ntraining ") == 1
    names = sorted(file.name for file in output.iterdir())
    assert names == [f"longer.{end}" for end in ("csv", "json", "md", "png")]
    value = result_table.read(output / "longer.json")
    assert [row["name"] for row in value["rows"]] == [
        "served 1",
        "served 2",
        "trained 2",
        "served 4",
    ]
    assert value["command"].startswith("python -m jaxrec.experiments longer --config=recipe.py")
    assert str(tmp_path) not in json.dumps(value)

    assert command.main(arguments) == 0
    assert "training" not in capsys.readouterr().err
    assert result_table.read(output / "longer.json")["rows"] == value["rows"]

    with pytest.raises(WorkdirError, match=r"tables of another configuration \(.*tokens"):
        command.main([*arguments, "--config.layout.tokens=3"])
    # what `probe` trains on decides no other table
    assert command.main([*arguments, "--config.experiments.probe.steps=5"]) == 0


@pytest.mark.slow
def test_all_of_them_stopped_and_continued(tmp_path, recipe):
    """SIGTERM in a training and in an evaluation; the third start ends with every table."""
    output = tmp_path / "out"
    arguments = [
        *(sys.executable, "-m", "jaxrec.experiments", "all", f"{recipe}:2"),
        *(f"--output={output}", f"--runs={tmp_path / 'runs'}"),
    ]

    def start():
        return subprocess.Popen(
            arguments,
            cwd=integration.ROOT,
            env=integration.environment(),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )

    for word, times in (("training", 2), ("evaluating", 2)):
        process = start()
        lines = []
        for line in process.stderr:
            lines.append(line)
            if sum(one.startswith(word) for one in lines) == times:
                process.send_signal(signal.SIGTERM)
                break
        lines += process.stderr.readlines()
        assert process.wait(timeout=300) == 0, lines
        assert lines[-1] == "stopped by SIGTERM; the same command goes on\n"
    process = start()
    _, lines = process.communicate(timeout=900)
    assert process.returncode == 0, lines
    trained = lines.count("\ntraining ")
    assert trained < len(list((tmp_path / "runs").glob("*/finished.json")))
    for name in registry.ALL:
        value = result_table.read(output / f"{name}.json")
        assert len(value["rows"]) == len({row["name"] for row in value["rows"]})
        for number in range(len(value["plots"])):
            stem = name if not number else f"{name}_{number + 1}"
            assert (output / f"{stem}.png").stat().st_size > 5000
    length = result_table.read(output / "length.json")["rows"]
    assert length[0]["name"] == "recent window"
    by_name = {row["name"]: row for row in length}
    assert by_name["full 17"]["recall_of_full"] == pytest.approx(1)
    assert by_name["compressed 17"]["flops_of_full"] < 1
    assert len(by_name["compressed 17"]["recall@10_seeds"]) == 2
