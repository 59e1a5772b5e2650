"""Overrides on the command line, records in tables, and errors that say what to change."""

import dataclasses
import shlex

import pytest

from jaxrec.errors import ConfigError
from jaxrec.experiments import probe, registry, settings
from jaxrec.experiments.runs import Lab, with_values
from tests.experiments import tiny

QUICK = "configs/experiments_quick.py"


def test_overrides():
    config = settings.load(
        QUICK,
        [
            "--config.train.steps=7",
            "--config.train.learning_rate=1",
            "--config.data.cache_dir=/somewhere",
            "--config.experiments.seeds=0,3",
            "--config.experiments.tokens=4",
            "--config.experiments.probe.data.users=50",
        ],
    )
    assert config.train.steps == 7
    assert isinstance(config.train.learning_rate, float)
    assert config.data.cache_dir == "/somewhere"
    assert config.experiments.seeds == (0, 3)
    assert config.experiments.tokens == (4,)
    assert config.experiments.probe.data.users == 50


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("--config.train.step=7", r"unknown config key train\.step: .*Did you mean train\.steps\?"),
        ("--config.train=7", "train is a group"),
        ("--config.train.steps.more=7", r"train\.steps is one value"),
        ("--config.train.steps=many", r"train\.steps='many': a int is needed"),
        ("--seeds=7", "unknown argument"),
        ("--config.experiments.seeds=()", r"experiments\.seeds=\(\): increasing integers"),
        ("--config.experiments.ages=3,1", r"experiments\.ages=\(3, 1\): increasing"),
        ("--config.experiments.tokens=0,1", r"experiments\.tokens=\(0, 1\): .* from 1 on"),
        ("--config.experiments.tokens=1.5", r"experiments\.tokens=\(1\.5,\): increasing integers"),
        ("--config.experiments.last=21", r"experiments\.last=21: at most data\.holdout=20"),
        ("--config.experiments.probe.steps=0", r"experiments\.probe\.steps=0"),
        ("--config.data.split=time", r"data\.split='time'"),
        ("--config.layout.mode=full", r"layout\.mode='full'"),
        ("--config.model.width=33", r"model\.width=33"),
    ],
)
def test_wrong_values_are_named(override, message):
    with pytest.raises(ConfigError, match=message):
        settings.load(QUICK, [override])


def test_wrong_files_are_named(tmp_path):
    with pytest.raises(ConfigError, match=r"not a Python file; there are .*experiments_quick"):
        settings.load("configs/experiments_quik.py")
    file = tmp_path / "x.py"
    file.write_text("value = 1\n")
    with pytest.raises(ConfigError, match=r"no function get_config"):
        settings.load(str(file))
    with pytest.raises(ConfigError, match=r"returned a Config, needed is an ExperimentsConfig"):
        settings.load("configs/completejourney_hstu.py")


@pytest.mark.parametrize("file", [QUICK, "configs/experiments_completejourney.py:2"])
def test_recipes_lay_out_every_experiment(file, tmp_path):
    """All settings of all rows are valid before anything is trained."""
    lab = Lab(settings.load(file), tmp_path, train=False)
    assert len(lab.seeds) == 2
    for name, make in ((name, registry.EXPERIMENTS[name]) for name in registry.ALL):
        experiment = make(lab)
        assert experiment.name == name
        assert experiment.plots
        names = [cell.name for cell in experiment.cells]
        assert len(set(names)) == len(names)


def test_a_setting_that_cannot_work_is_found_before_training(tmp_path):
    config = tiny.config()
    config.experiments.probe.data.users = 0
    with pytest.raises(ConfigError, match=r"data\.synthetic\.users=0"):
        probe.probe(Lab(config, tmp_path, train=False))


def test_record_names_files_without_the_folders_of_a_machine():
    config = tiny.config()
    config.data.path, config.data.items_path = "/data/films/events.parquet", "films/items.parquet"
    kept = settings.record(config)
    assert kept["data"]["path"] == "films/events.parquet"
    assert kept["data"]["items_path"] == "films/items.parquet"
    assert config.data.path == "/data/films/events.parquet"
    assert settings.record(settings.rebuild(kept)) == kept


def test_record_keeps_everything_but_places():
    config = tiny.config()
    config.data.cache_dir = "/somewhere"
    kept = settings.record(config)
    assert kept["data"]["cache_dir"] == ""
    again = settings.rebuild(kept)
    config.data.cache_dir = ""
    assert dataclasses.asdict(again) == dataclasses.asdict(config)
    assert settings.digest(again) == settings.digest(config)
    other = tiny.config(last=1)
    assert settings.digest(other) != settings.digest(config)
    with pytest.raises(ConfigError, match="unknown config key"):
        settings.rebuild(kept | {"more": 1})


def test_command_leaves_out_the_machines_folders(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    arguments = [
        "length",
        "--config=configs/x.py",
        "--runs",
        "/a/b",
        "--runs=/a/b",
        "--config.data.cache_dir=/c",
        f"--output={tmp_path / 'out'}",
        "--config.experiments.ablations=('base', 'tokens 1')",
    ]
    command = settings.command(arguments)
    words = [*arguments[:2], "--output=out", arguments[-1]]
    assert shlex.split(command) == ["python", "-m", "jaxrec.experiments", *words]
    assert settings.command(["all", "--output=/far/away"]).endswith("all --output=away")


def test_probe_runs_on_planted_data_without_counts():
    config = tiny.config()
    run = probe.run_of(config)
    assert run.data.dataset == "synthetic"
    assert run.data.synthetic == config.experiments.probe.data
    assert run.model.repeat_half_lives == run.model.repeat_half_times == ()
    assert config.model.repeat_half_lives  # the base has them
    with pytest.raises(ConfigError, match=r"layout\.tokens=0"):
        with_values(run, layout__tokens=0)
