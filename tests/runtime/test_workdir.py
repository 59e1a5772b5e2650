"""Whose folder it is."""

import dataclasses
import json
import subprocess
import sys

import pytest

from jaxrec import config as config_lib
from jaxrec.config import Config
from jaxrec.runtime import workdir
from jaxrec.runtime.workdir import WorkdirError

DIGESTS = {"data": "d1", "vocabulary": "v1"}


def test_the_same_run_comes_back(tmp_path):
    config = Config()
    config.eval.ks = (1, 10)
    assert workdir.claim(tmp_path, config, DIGESTS) == []
    assert workdir.claim(tmp_path, config, DIGESTS) == []
    assert workdir.load_config(tmp_path) == config
    # what JSON cannot tell apart is not a difference
    config.train.learning_rate = 1e-3 + 0
    config.model.dropout = float(config.model.dropout)
    assert workdir.claim(tmp_path, config, DIGESTS) == []


def test_free_keys_may_change_and_are_named(tmp_path):
    config = Config()
    workdir.claim(tmp_path, config, DIGESTS)
    config.train.steps = 77
    config.eval.ks = (3,)
    config.data.cache_dir = "elsewhere"
    changed = workdir.claim(tmp_path, config, DIGESTS)
    assert changed == [
        "data.cache_dir='' there, 'elsewhere' here",
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


def test_a_key_that_the_stored_config_lacks_is_a_difference(tmp_path):
    workdir.claim(tmp_path, Config(), DIGESTS)
    values = json.loads((tmp_path / "config.json").read_text())
    del values["model"]["width"]
    (tmp_path / "config.json").write_text(json.dumps(values))
    with pytest.raises(WorkdirError, match=r"model.width=missing there, 64 here"):
        workdir.claim(tmp_path, Config(), DIGESTS)


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
        with pytest.raises(WorkdirError, match=r"config.json is damaged"):
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
