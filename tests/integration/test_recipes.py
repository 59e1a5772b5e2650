"""Every recipe of `configs/` is a configuration that can work, for every argument it names."""

import importlib
import pathlib
import re

import pytest

import configs
from jaxrec import config as config_lib
from jaxrec.benchmark import grid_config
from jaxrec.config import Config
from jaxrec.errors import ConfigError
from jaxrec.experiments import ablations, runs, settings

ROOT = pathlib.Path(configs.__file__).parents[1]
FILES = sorted(pathlib.Path(configs.__file__).parent.glob("[a-z]*.py"))
GRIDS = [path.stem for path in FILES if path.stem.startswith("bench_")]
NAMES = [path.stem for path in FILES if path.stem not in GRIDS]
ARGUMENTS = {n: getattr(importlib.import_module(f"configs.{n}"), "ARGUMENTS", ()) for n in NAMES}


def cases() -> list[tuple[str, tuple[str, ...]]]:
    """(recipe, arguments of get_config): none, and each that the recipe names."""
    named = {name: [(argument,) for argument in ARGUMENTS[name]] for name in NAMES}
    return [(name, argument) for name in NAMES for argument in ((), *named[name])]


@pytest.mark.parametrize(("name", "argument"), cases())
def test_recipes_are_valid(name, argument):
    config = importlib.import_module(f"configs.{name}").get_config(*argument)
    assert isinstance(config, Config)
    config.data.path = config.data.path or "events.parquet"  # given on the command line
    config_lib.validate(config)


@pytest.mark.parametrize("name", GRIDS)
def test_grids_are_valid(name):
    grid_config.validate(importlib.import_module(f"configs.{name}").get_config())


@pytest.mark.parametrize("name", [name for name in NAMES if name.startswith("ablations_")])
def test_rows_of_ablations_can_be_trained(name):
    config = settings.validate(importlib.import_module(f"configs.{name}").get_config())
    config.data.path = config.data.path or "events.parquet"
    rows = ablations.parse(config.experiments.ablations)
    base = ablations.changed(runs.plain(config), rows[0])
    for row in rows[1:]:
        assert ablations.changed(base, row) != base, row.name


def test_recipes_that_take_a_mode_name_their_arguments():
    expected = {"completejourney_hstu", "movielens_quality", "hllm_ml_latest_small"}
    assert expected <= {name for name in NAMES if ARGUMENTS[name]}


@pytest.mark.parametrize("name", [name for name in NAMES if ARGUMENTS[name]])
def test_other_arguments_are_refused_by_name(name):
    module = importlib.import_module(f"configs.{name}")
    with pytest.raises(ConfigError, match="config argument 'nonsense': allowed are"):
        module.get_config("nonsense")


def test_discoveries_are_ranked_without_history_items():
    config = importlib.import_module("configs.completejourney_hstu").get_config("discover")
    assert config.layout.mode == "compressed"
    assert config.model.item_bias
    assert config.eval.filter_seen
    assert config.model.repeat_half_lives == config.model.repeat_half_times == ()


@pytest.mark.parametrize("name", [path.stem for path in FILES])
def test_docstrings_say_what_a_reader_needs(name):
    """Command, and (recipes) data, layout, hardware and quality; named results exist."""
    text = importlib.import_module(f"configs.{name}").__doc__
    assert text.splitlines()[0].endswith("."), "a sentence"
    assert f"--config=configs/{name}.py" in text
    if name in NAMES:
        for word in ("data", "layout", "hardware", "cost", "quality"):
            assert re.search(rf"\b{word}\b", text, re.IGNORECASE), word
    for result in re.findall(r"`(results/[\w./-]+)`", text):
        assert (ROOT / result).exists(), result
