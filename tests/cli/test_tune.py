"""A search: what it refuses, trials and their outcomes, continuing, the best recipe."""

import json
import signal
from typing import ClassVar

import optuna
import pytest

from jaxrec.cli import search_space, tune, tune_report, tune_trials
from jaxrec.config import Config, load_recipe
from jaxrec.errors import ConfigError, NonFiniteError
from jaxrec.runtime import workdir
from jaxrec.runtime.preemption import Preempted
from jaxrec.runtime.program import exit_status
from jaxrec.training.loop import Result

RECIPE = """
from jaxrec.config import Config

def get_config():
    config = Config()
    config.data.dataset = "synthetic"
    config.data.min_item_events = 1
    synthetic = config.data.synthetic
    synthetic.users, synthetic.items, synthetic.events, synthetic.gap = 24, 60, 30, 12
    synthetic.interests = 4
    config.layout.segment_size, config.layout.tokens, config.layout.max_segments = 6, 2, 2
    config.model.width, config.model.heads, config.model.layers = 8, 2, 1
    config.model.token_input = "pooled"
    config.train.steps, config.train.batch_size = 8, 8
    config.train.eval_every, config.train.checkpoint_every = 4, 4
    return config
"""


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("model.widht=8,16", r"unknown config key model\.widht.*Did you mean model\.width"),
        ("model=8,16", "model is a group"),
        ("model.width", "needed is KEY=A,B"),
        ("model.width=", "needed is KEY=A,B"),
        ("model.width=8,x", "values like 64"),
        ("model.width=8,0", r"--search model\.width=0: allowed is 1"),
        ("model.width=8,1.5", r"model\.width=1\.5: an integer is needed"),
        ("model.width=8", r"one value is no search; set it by --config\.model\.width=8"),
        ("model.width=8,8", "8 stands there twice"),
        ("model.width=1.5..8", "LOW..HIGH of integers"),
        ("model.width=8..8", "8 must be below 8"),
        ("model.width=0..8", r"model\.width=0: allowed is 1"),
        ("model.width=8..20:step=5", "steps of 5 do not lead to 20"),
        ("model.width=8..20:step=4:log", "LOW..HIGH of integers"),
        ("model.width=8..20:log:step=4", "a step above 0 without :log"),
        ("train.learning_rate=0..1:log", ":log needs numbers above 0"),
        ("train.learning_rate=1e-4..x", "LOW..HIGH of numbers"),
        ("model.dropout=0.5..2.0", r"model\.dropout=2\.0: allowed is 0 to 0\.99"),
        ("model.backbone=hstu,gru", r"model\.backbone='gru': allowed are hstu, sasrec"),
        ("model.item_bias=True,1", r"a bool is needed"),
        ("data.holdout=1,2", "the same data, seed and validation"),
        ("seed=1,2", "the same data, seed and validation"),
        ("eval.filter_seen=True,False", "the same data, seed and validation"),
        ("train.metric=ndcg@10,recall@10", "the same data, seed and validation"),
    ],
)
def test_searches_that_cannot_be(text, words):
    with pytest.raises(ConfigError, match=words) as error:
        search_space.parse([text])
    assert "\n" not in str(error.value)


def test_keys_that_are_given_twice():
    with pytest.raises(ConfigError, match="is given 2 times"):
        search_space.parse(["model.width=8,16", "model.width=32,64"])
    with pytest.raises(ConfigError, match=r"--config\.model\.width sets it already"):
        search_space.parse(["model.width=8,16"], ["model.width"])
    with pytest.raises(ConfigError, match="--search is missing"):
        search_space.parse([])


def test_values_have_the_types_of_their_keys():
    texts = ["model.width=8,16", "layout.tokens=1..3", "train.steps=10..30:step=10"]
    texts += ["train.learning_rate=1e-4..1e-2:log", "train.ema=0,0.9", "model.item_bias=True,False"]
    texts += ["model.repeat_half_lives=(),(16.0,0.0)", "loss.similarity=dot, cosine"]
    space = search_space.parse(texts)
    assert search_space.combinations(space[:3]) == 2 * 3 * 3
    assert search_space.combinations(space) == float("inf")
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    config, seen = Config(), set()
    for _ in range(20):
        found = search_space.suggest(space, study.ask())
        for key, value in found.items():
            assert type(value) is type(workdir.flatten(config)[key]), key
        assert 1e-4 <= found["train.learning_rate"] <= 1e-2
        seen |= {(key, value) for key, value in found.items() if key != "train.learning_rate"}
    assert {value for key, value in seen if key == "model.repeat_half_lives"} == {(), (16.0, 0.0)}
    assert {value for key, value in seen if key == "train.steps"} == {10, 20, 30}


class Fake:
    """In place of a session: its validation is the width, at two steps; `events` happen once."""

    events: ClassVar[dict[int, Exception]] = {}
    trained: ClassVar[list[int]] = []

    def __init__(self, config, folder, mesh, poll=None):
        self.config, self.folder = config, folder

    def check_targets(self):
        """All users have targets."""

    def fit(self, preemption, hooks):
        width, metric = self.config.model.width, self.config.train.metric
        checkpoints = self.folder / workdir.CHECKPOINTS
        checkpoints.mkdir(parents=True, exist_ok=True)
        self.trained.append(width)
        for step in (4, 8):
            value = width * step / 1000
            with open(self.folder / workdir.METRICS, "a") as file:
                file.write(json.dumps({"step": step, f"validation/{metric}": value}) + "\n")
            for hook in hooks:
                hook.after_validation(step, {metric: value})
            if width in self.events:
                raise self.events.pop(width)
        return Result(8, "finished", value, 8)


@pytest.fixture
def fake(monkeypatch):
    monkeypatch.setattr(Fake, "events", {})
    monkeypatch.setattr(Fake, "trained", [])
    monkeypatch.setattr(tune_trials, "Session", Fake)
    return Fake


@pytest.fixture
def search(tmp_path, capsys):
    """Runs a command: arguments -> (status, standard output, standard error)."""
    recipe = tmp_path / "recipe.py"
    recipe.write_text(RECIPE)

    def run(*arguments, folder="search"):
        common = (f"--config={recipe}", f"--workdir={tmp_path / folder}")
        status = exit_status("jaxrec tune", tune.main, [*common, *arguments])
        shown = capsys.readouterr()
        return status, shown.out, shown.err

    return run


def rows(folder):
    found = json.loads((folder / "search" / tune_report.VALUES).read_text())["trials"]
    return [row for row in found if row["kind"] != "invalid"]


def test_a_search_finds_the_best_and_goes_on(fake, search, tmp_path):
    arguments = ("--search", "model.width=8..64:step=2", "--config.train.steps=8")
    status, out, err = search(*arguments, "--trials=4")
    assert status == 0, err
    assert len(fake.trained) == 4
    assert "4 trials: " in out
    assert "some 0:00 left" in err
    best = max(row["value"] for row in rows(tmp_path) if row["kind"] == "finished")
    assert best == max(fake.trained) * 8 / 1000
    recipe = tmp_path / "search" / tune_report.BEST
    config = load_recipe(str(recipe))
    assert config.model.width == max(fake.trained)
    assert config.data.cache_dir == str(tmp_path / "search" / "data")
    assert "the test was not looked at" in out
    assert f"jaxrec evaluate --workdir={tmp_path / 'search' / 'trials'}" in out
    # checkpoints of the best alone
    (kept,) = (tmp_path / "search").glob(f"trials/*/{workdir.CHECKPOINTS}")
    assert kept.parent.name in out
    assert (tmp_path / "search" / tune_report.PLOT).read_bytes().startswith(b"\x89PNG")
    # the same command trains nothing, a larger number goes on, another search is refused
    assert search(*arguments, "--trials=4")[0] == 0
    assert len(fake.trained) == 4
    assert search(*arguments, "--trials=6")[0] == 0
    assert len(fake.trained) == len(set(fake.trained)) == 6
    status, _, err = search("--search", "model.width=8,16")
    assert (status, err.count("\n")) == (2, 1)
    assert "holds another search" in err
    status, _, err = search(*arguments, "--config.train.batch_size=16")
    assert status == 2
    assert "train.batch_size=8 there, 16 here" in err


def test_poor_trials_are_stopped_and_repeats_cost_nothing(fake, search, tmp_path):
    status, _, err = search("--search", "model.width=8,16,24,32,40,48,56,64", "--trials=30")
    assert status == 0, err
    assert "all 8 settings were tried" in err
    assert sorted(fake.trained) == [8, 16, 24, 32, 40, 48, 56, 64]
    kinds = {row["kind"] for row in rows(tmp_path)}
    assert kinds == {"finished", "stopped"}
    stopped = [row for row in rows(tmp_path) if row["kind"] == "stopped"]
    assert all(row["step"] == 4 and "below the median at step 4" in row["note"] for row in stopped)
    assert load_recipe(str(tmp_path / "search" / tune_report.BEST)).model.width == 64


def test_trials_that_fail_are_counted(fake, search, tmp_path):
    fake.events = {16: NonFiniteError("step 3: the loss is nan")}
    status, out, err = search("--search", "model.width=8,15,16,32", "--trials=9")
    assert status == 0, err
    assert sorted(fake.trained) == [8, 16, 32]
    assert "1 diverged" in out
    assert "1 settings did not fit together" in out
    assert "invalid, model.width=15: must be a multiple of model.heads=2" in err
    status, _, err = search("--search", "model.width=9,15", folder="other")
    assert status == 2
    assert "no settings of the search fit together: model.width=" in err


@pytest.mark.parametrize(("error", "status"), [(Preempted(signal.SIGINT), 130), (Preempted(), 0)])
def test_a_killed_trial_is_continued(fake, search, tmp_path, error, status):
    arguments = ("--search", "model.width=8,16", "--trials=2")
    fake.events = {8: error, 16: error}
    found, _, err = search(*arguments)
    assert found == status
    assert "the same command continues the search" in err
    fake.events.clear()
    found, out, err = search(*arguments)
    assert found == 0, err
    assert "was interrupted and is continued" in err
    assert fake.trained[1] == fake.trained[0]  # the same settings, in the same folder
    assert "2 trials: 2 finished" in out


def test_mistakes_are_one_line(search, tmp_path):
    for arguments, words in (
        (("--search", "model.width=8,16", "--trials=0"), "--trials=0: 1 or more"),
        (("--search", "model.width=8,16", "--trials=x"), "--trials='x': an integer is needed"),
        (("--search", "model.width=8,16", "--config.model.widht=8"), "unknown config key"),
        (
            ("--search", "model.width=8,16", "--steps=8"),
            "unknown flag --steps: did you mean --config.train.steps?",
        ),
        (("--search", "model.width=8,16", "--config.data.holdout=500"), "no user has a target"),
        ((), "--search is missing"),
    ):
        status, _, err = search(*arguments)
        assert status == 2
        assert err.splitlines()[-1].startswith("jaxrec tune: error: ")
        assert words in err.splitlines()[-1]
    assert exit_status("jaxrec tune", tune.main, []) == 2
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / workdir.CONFIG).write_text("{}")
    status, _, err = search("--search", "model.width=8,16", folder="run")
    assert status == 2
    assert "holds a run: a search needs a folder of its own" in err


def test_help_names_the_flags(capsys):
    assert tune.main(["--help"]) == 0
    assert "--search KEY=VALUES" in capsys.readouterr().out


@pytest.mark.slow
def test_real_trials(search, tmp_path):
    arguments = ("--search", "train.vary_segments=True,False", "--trials=2")
    status, _, err = search(*arguments)
    assert status == 0, err
    assert len(rows(tmp_path)) == 2
    top = tune_report.best([tune_report.Row(**row) for row in rows(tmp_path)])
    folder = tmp_path / "search" / "trials" / top.folder
    config = load_recipe(str(tmp_path / "search" / tune_report.BEST))
    workdir.check(folder, config)  # eval.py takes both
    assert top.value > 0
