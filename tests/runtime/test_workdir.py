"""Whose folder it is."""

import dataclasses
import json
import subprocess
import sys

import pytest

from jaxrec import config as config_lib
from jaxrec.config import Config
from jaxrec.errors import WorkdirError
from jaxrec.runtime import workdir

DIGESTS = {"data": "d1", "vocabulary": "v1"}


def test_the_same_run_comes_back(tmp_path):
    config = Config()
    config.eval.ks = (1, 10)
    assert workdir.claim(tmp_path, config, DIGESTS).changed == []
    assert workdir.claim(tmp_path, config, DIGESTS).changed == []
    assert workdir.load_config(tmp_path) == config
    # what JSON cannot tell apart is not a difference
    config.train.learning_rate = 1e-3 + 0
    config.model.dropout = float(config.model.dropout)
    assert workdir.claim(tmp_path, config, DIGESTS).changed == []


def test_free_keys_may_change_and_are_named(tmp_path):
    config = Config()
    workdir.claim(tmp_path, config, DIGESTS)
    config.train.steps = 77
    config.eval.ks = (3,)
    config.data.cache_dir = "elsewhere"
    config.data.prepare_memory, config.data.prepare_workers = 500, 3
    changed = workdir.claim(tmp_path, config, DIGESTS).changed
    assert changed == [
        "data.cache_dir='' there, 'elsewhere' here",
        "data.prepare_memory=1000 there, 500 here",
        "data.prepare_workers=2 there, 3 here",
        "eval.ks=[1, 5, 10, 50, 200] there, [3] here",
        "train.steps=2000 there, 77 here",
    ]
    assert workdir.load_config(tmp_path) == config


def test_another_configuration_is_refused_with_keys_and_digests(tmp_path):
    config = Config()
    workdir.claim(tmp_path, config, DIGESTS)
    before = (tmp_path / "config.json").read_text()
    config.model.width = 128
    config.train.steps = 9
    with pytest.raises(WorkdirError) as error:
        workdir.claim(tmp_path, config, DIGESTS)
    text = str(error.value)
    assert str(tmp_path) in text
    assert "model.width=64 there, 128 here" in text
    assert "train.steps" not in text  # it may differ
    digests = text[text.index("(") + 1 : text.index(")")].split(" there, ")
    assert digests[0] != digests[1].removesuffix(" here")
    assert (tmp_path / "config.json").read_text() == before


def test_another_dataset_is_refused_with_both_digests(tmp_path):
    workdir.claim(tmp_path, Config(), DIGESTS)
    with pytest.raises(WorkdirError, match=r"another dataset.*vocabulary.*v1.*v2"):
        workdir.claim(tmp_path, Config(), DIGESTS | {"vocabulary": "v2"})


def test_an_evaluation_needs_the_runs_model_and_data(tmp_path):
    with pytest.raises(WorkdirError, match=r"no config.json: train there first"):
        workdir.check(tmp_path, Config())
    workdir.claim(tmp_path, Config(), DIGESTS)
    before = sorted(path.read_text() for path in tmp_path.iterdir())
    config = Config()
    config.eval.ks, config.train.batch_size, config.data.workers = (3,), 8, 0
    workdir.check(tmp_path, config)
    workdir.check_data(tmp_path, DIGESTS)
    config.model.hstu.normalizer = 7.0  # same shapes, other scores
    config.data.holdout = 20
    with pytest.raises(WorkdirError, match=r"holdout=1 there, 20 here; model.hstu.normalizer=0.0"):
        workdir.check(tmp_path, config)
    with pytest.raises(WorkdirError, match=r"trained on another dataset: its data .*d1.*d2"):
        workdir.check_data(tmp_path, DIGESTS | {"data": "d2"})
    assert sorted(path.read_text() for path in tmp_path.iterdir()) == before
    (tmp_path / "dataset.json").unlink()
    with pytest.raises(WorkdirError, match=r"data digest is None"):
        workdir.check_data(tmp_path, DIGESTS)


def test_a_key_that_came_after_the_start_had_its_default(tmp_path):
    workdir.claim(tmp_path, Config(), DIGESTS)
    values = json.loads((tmp_path / "config.json").read_text())
    del values["model"]["width"]
    (tmp_path / "config.json").write_text(json.dumps(values))
    config = Config()
    assert workdir.claim(tmp_path, config, DIGESTS).changed == []
    config.model.width = 128
    with pytest.raises(WorkdirError, match=r"model.width=64 there, 128 here"):
        workdir.claim(tmp_path, config, DIGESTS)


def test_a_run_of_an_earlier_layout_is_refused(tmp_path):
    workdir.claim(tmp_path, Config(), DIGESTS)
    values = json.loads((tmp_path / "config.json").read_text())
    values["train"]["clip"] = 1.0
    (tmp_path / "config.json").write_text(json.dumps(values))
    for use in (
        lambda: workdir.claim(tmp_path, Config(), DIGESTS),
        lambda: workdir.check(tmp_path, Config()),
        lambda: workdir.load_config(tmp_path),
    ):
        with pytest.raises(WorkdirError, match=r"earlier layout of jaxrec .*train\.clip.*; train"):
            use()


def test_strange_and_damaged_folders(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(WorkdirError, match=r"has checkpoints but no config.json"):
        workdir.claim(tmp_path, Config(), DIGESTS)
    with pytest.raises(WorkdirError, match=r"no config.json: train there first"):
        workdir.load_config(tmp_path)
    (tmp_path / "config.json").write_text("{")
    for use in (
        lambda: workdir.claim(tmp_path, Config(), {}),
        lambda: workdir.load_config(tmp_path),
    ):
        with pytest.raises(WorkdirError, match=r"config\.json: .*damaged"):
            use()


def test_every_free_pattern_names_a_key():
    keys = workdir.flatten(Config())
    for pattern in workdir.FREE:
        matching = [key for key in keys if workdir.fnmatch.fnmatchcase(key, pattern)]
        assert matching, pattern
    assert not workdir.is_free("train.metric")
    assert set(keys) == set(workdir.flatten(config_lib.from_json(config_lib.to_json(Config()))))


def test_flatten():
    flat = workdir.flatten(Config())
    assert flat["model.hstu.normalizer"] == 0.0
    assert not any(dataclasses.is_dataclass(value) for value in flat.values())


def test_two_processes_cannot_train_in_one_folder(tmp_path):
    program = (
        "import pathlib, sys; from jaxrec.runtime import workdir\n"
        "with workdir.lock(pathlib.Path(sys.argv[1])): print('mine', flush=True); input()"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert child.stdout.readline() == "mine\n"
        with pytest.raises(WorkdirError, match="in use by another"), workdir.lock(tmp_path):
            pass
    finally:
        child.kill()
        child.communicate()
    with workdir.lock(tmp_path):  # a killed process lets go
        pass


def test_data_that_was_appended_to_needs_a_word(tmp_path):
    """Refused with the name of the flag, taken with it, and other data never."""
    config, later = Config(), {"data": "d2", "vocabulary": "v2"}
    before = [workdir.Ancestor(DIGESTS, 7)]
    workdir.claim(tmp_path, config, DIGESTS)
    config.data.append = ("day2.parquet",)
    with pytest.raises(WorkdirError, match=r"train\.continue_on_new_data=True"):
        workdir.claim(tmp_path, config, later, before)
    config.train.continue_on_new_data = True
    strangers = [workdir.Ancestor(DIGESTS | {"vocabulary": "other"}, 7)]
    with pytest.raises(WorkdirError, match=r"data\.append=\[\] there, \['day2"):
        workdir.claim(tmp_path, config, later, strangers)
    config.data.append = ()
    with pytest.raises(WorkdirError, match=r"another dataset.*later files in data\.append"):
        workdir.claim(tmp_path, config, later, strangers)
    config.data.append = ("day2.parquet",)
    for _ in range(2):  # a process killed before `adopt` finds the same
        claim = workdir.claim(tmp_path, config, later, before)
        assert claim.grown
        assert any("data.append" in line for line in claim.changed)
    workdir.adopt(tmp_path, config, later)
    assert workdir.claim(tmp_path, config, later, before) == ([], False)
    config.model.width = 9
    with pytest.raises(WorkdirError, match=r"model\.width"):
        workdir.claim(tmp_path, config, later, before)


def test_killed_while_adopting(tmp_path, monkeypatch):
    config, later = Config(), {"data": "d2", "vocabulary": "v2"}
    before = [workdir.Ancestor(DIGESTS, 7)]
    workdir.claim(tmp_path, config, DIGESTS)
    config.data.append, config.train.continue_on_new_data = ("day2.parquet",), True
    write = workdir.write_text
    for file in ("config.json", "dataset.json"):

        def killed(path, text, file=file):
            if path.name == file:
                raise KeyboardInterrupt
            write(path, text)

        monkeypatch.setattr(workdir, "write_text", killed)
        with pytest.raises(KeyboardInterrupt):
            workdir.adopt(tmp_path, config, later)
        monkeypatch.undo()
        assert workdir.claim(tmp_path, config, later, before).grown


def test_a_lock_follows_no_link_and_truncates_nothing(tmp_path):
    victim = tmp_path / "victim"
    victim.write_text("kept")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".lock").symlink_to(victim)
    with (
        pytest.raises(WorkdirError, match=r"\.lock: cannot be opened"),
        workdir.lock(tmp_path / "run"),
    ):
        pass
    assert victim.read_text() == "kept"
    (tmp_path / "run" / ".lock").unlink()
    (tmp_path / "run" / ".lock").write_text("kept")
    with workdir.lock(tmp_path / "run"):
        assert (tmp_path / "run" / ".lock").read_text() == "kept"
