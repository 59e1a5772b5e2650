"""`jaxrec savings`: three models trained, or taken, and what may be said of them."""

import json
import shutil

import numpy as np
import pytest

from jaxrec.cli import savings as program
from jaxrec.config import Config
from jaxrec.errors import ConfigError
from jaxrec.experiments import savings, timed
from tests.experiments import made_up

RECIPE = """
import dataclasses
from jaxrec.config import Config
from tests.experiments import tiny

def get_config():
    made = tiny.config(seeds=(0,))
    made = Config(**{field.name: getattr(made, field.name) for field in dataclasses.fields(Config)})
    made.data.holdout = 1
    return made
"""
KINDS = ("user", "item", "time")
MODES = ("recent", "compressed", "full")


@pytest.fixture(scope="module")
def answered(tmp_path_factory):
    """(folder of an answer, arguments of the command)."""
    root = tmp_path_factory.mktemp("savings")
    (root / "recipe.py").write_text(RECIPE)
    arguments = [f"--config={root / 'recipe.py'}", f"--workdir={root / 'answer'}"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(timed, "SECONDS", 0.0)
        assert program.main(arguments) == 0
    return root / "answer", arguments


def test_tables_page_and_verdict_are_written(answered):
    folder, _ = answered
    lines = (folder / "verdict.txt").read_text().splitlines()
    assert len(lines) == 3
    # four steps teach nothing, and nobody may say so of tokens
    assert lines[0].startswith("Cannot tell: ")
    assert "still improving when the training ended" in lines[0]
    assert "users are too few" not in lines[0]  # that cannot be known of such models
    assert lines[1].startswith("Of full history's cost compressed takes ")
    assert lines[2].startswith("NDCG@10: popularity 0.")
    assert "24 users, 24 targets, 1 training each" in lines[2]
    page = (folder / "index.html").read_text()
    assert "What these models take on this machine" in page
    assert "Numbers in brackets are quartiles" in page
    gap, cost = (json.loads((folder / f"{name}.json").read_text()) for name in ("gap", "cost"))
    assert gap["command"] == cost["command"]
    assert gap["command"].startswith("jaxrec savings --workdir=answer --config=recipe.py")
    assert [row["name"] for row in cost["rows"]] == [*MODES] * 3
    for row in cost["rows"]:
        assert row["ms_low"] <= row["ms"] <= row["ms_high"]
    full = [row for row in cost["rows"] if row["name"] == "full"]
    assert all(row["ms_of_full"] == 1 for row in full)


def test_the_same_command_trains_nothing_again(answered, monkeypatch, capsys):
    folder, arguments = answered
    checkpoints = {p: p.stat().st_mtime_ns for p in folder.glob("runs/*/checkpoints/*")}
    assert len(checkpoints) >= 3
    monkeypatch.setattr(timed, "SECONDS", 0.0)
    assert program.main(arguments) == 0
    printed = capsys.readouterr()
    assert "all models are trained already" in printed.err
    assert printed.out.splitlines()[:3] == (folder / "verdict.txt").read_text().splitlines()
    assert "| request of 16 users | " in printed.out
    assert {p: p.stat().st_mtime_ns for p in checkpoints} == checkpoints
    with pytest.raises(Exception, match="tables of another configuration"):
        program.main([*arguments, "--config.train.steps=8"])


def test_finished_runs_are_taken_as_they_are(answered, tmp_path, monkeypatch, capsys):
    folder, _ = answered
    runs = {}
    for run in folder.glob("runs/*/config.json"):
        runs[json.loads(run.read_text())["layout"]["mode"]] = run.parent
    flags = [f"--{mode}={runs[mode]}" for mode in MODES]
    monkeypatch.setattr(timed, "SECONDS", 0.0)
    assert program.main([*flags, f"--workdir={tmp_path / 'other'}"]) == 0
    assert "all models are trained already" in capsys.readouterr().err
    ours, others = (
        json.loads((place / "gap.json").read_text())["rows"]
        for place in (folder, tmp_path / "other")
    )
    assert ours == others

    swapped = [f"--recent={runs['full']}", *flags[1:], f"--workdir={tmp_path / 'swapped'}"]
    with pytest.raises(ConfigError, match=r"--recent=.*: layout.mode there is 'full'"):
        program.main(swapped)
    for key, value, words in (
        ("model.repeat_half_lives", [4.0], "its scores count the user's own items"),
        ("data.holdout", 2, "data is not that of the compressed run"),
    ):
        copy = tmp_path / "copy"
        shutil.copytree(runs["full"], copy)
        file = copy / "config.json"
        config = json.loads(file.read_text())
        group, name = key.split(".")
        config[group][name] = value
        file.write_text(json.dumps(config))
        with pytest.raises(ConfigError, match=f"--full=.*: {words}"):
            savings.of_runs({**runs, "full": copy})
        shutil.rmtree(copy)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "--workdir=FOLDER is needed"),
        (["--workdir=x"], "--events=FILE or --config=FILE.py is needed"),
        (
            ["--workdir=x", "--events=a.csv", "--config=configs/ml1m.py"],
            "--config and --events: give",
        ),
        (
            ["--workdir=x", "--events=a.csv", "--full=a", "--recent=a", "--compressed=a"],
            "--events: fi",
        ),
        (["--workdir=x", "--config=none.py"], "none.py: not a Python file"),
        (["--workdir=x", "--config=configs/ml1m.py:full"], "layout.mode='full': .* 'compressed'"),
        (["--workdir=x", "--config=configs/ml1m.py:compressed", "--config.train.step=1"], "step"),
        (["--workdir=x", "--full=a"], "--recent=RUN is needed too"),
        (["--workdir=x", "--full=a", "--recent=a", "--compressed=a", "--seeds=2"], "--seeds: fini"),
        (["--workdir=x", "--seeds=0", "--config=configs/ml1m.py"], "--seeds=0: a positive"),
    ],
)
def test_mistakes_are_named(arguments, words):
    with pytest.raises(ConfigError, match=words):
        program.main(arguments)


def test_times_are_compared_round_by_round():
    samples = {"full": [0.2, 0.4, 0.8], "compressed": [0.1, 0.1, 0.4, 9.0]}
    row = timed.compared(samples, "compressed")
    assert row["ms_of_full"] == pytest.approx(0.5)
    assert row["ms"] == pytest.approx(250.0)
    assert row["rounds"] == 3
    assert timed.compared(samples, "full")["ms_of_full_low"] == 1.0


def test_the_first_line_is_the_verdict():
    rows = made_up.gap_rows()
    for row in rows:
        row |= {"targets": 20, "ndcg@10_seeds": [row["ndcg@10"]]}
    cost = [
        {"part": part, "name": mode, "ms": 2.0, "ms_of_full": 0.25}
        for part in ("request of 1 user", "request of 16 users", "training step")
        for mode in MODES
    ]
    first, second, third = savings.conclusion(rows, cost)
    assert first.startswith("Tokens close 90.0 % [88.0, 92.0] of what full history adds")
    assert second == (
        "Of full history's cost compressed takes 12 % of the FLOPs of a request; of the time, "
        "here, 25 % (2 ms against 2 ms) for a request of 1 user, 25 % (2 ms against 2 ms) for 16 "
        "users, 25 % (2 ms against 2 ms) for a training step; a user's state has 2.0 KB."
    )
    assert "10 users, 20 targets, 1 training each" in third


def test_columns_of_a_first_look():
    row = {"name": "full", "part": "a", "ndcg@10": 0.1, "ndcg@10_gap_low": 0.0, "users": 3}
    assert savings.shown([row]) == [{"name": "full", "ndcg@10": 0.1}]
    assert [r["part"] for r in savings.shown([row, row | {"part": "b"}])] == ["a", "b"]


def test_a_file_of_events_gets_the_settings_of_its_data(tmp_path):
    rng = np.random.default_rng(0)
    lines = ["who,what,when"]
    for user in range(12):
        lines += [f"{user},{item},{n}" for n, item in enumerate(rng.integers(0, 20, 40))]
    (tmp_path / "events.csv").write_text("\n".join(lines) + "\n")
    arguments = [f"--events={tmp_path / 'events.csv'}", f"--workdir={tmp_path / 'answer'}"]
    columns = [
        f"--config.data.{k}_column={v}" for k, v in zip(KINDS, lines[0].split(","), strict=True)
    ]
    overrides = [*columns, "--config.model.width=8", "--config.data.min_item_events=1"]
    config = program._config(program.parser().parse_args(arguments), overrides)
    assert config.layout.mode == "compressed"
    assert (config.model.width, config.data.time_column) == (8, "when")
    assert config.layout.segment_size < 50  # of table.py, too long for these histories
    assert config.experiments.users == 0
    assert (tmp_path / "answer" / "runs" / "data").is_dir()


def test_recipes_keep_their_experiments():
    config = savings.asked(savings.of_recipe("configs/experiments_ml1m.py:hstu"), (0, 1))
    assert config.experiments.seeds == (0, 1)
    assert isinstance(config, Config)
    assert np.all(np.asarray(config.experiments.tokens) == (1, 4, 16))
