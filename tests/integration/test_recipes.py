"""Every recipe of `configs/` is a configuration that can work, for every argument it names."""

import importlib
import pathlib

import pytest

import configs
from jaxrec import config as config_lib
from jaxrec.benchmark import grid_config
from jaxrec.config import Config
from jaxrec.errors import ConfigError
from jaxrec.experiments import ablations, runs, settings

FILES = sorted(pathlib.Path(configs.__file__).parent.glob("[a-z]*.py"))
GRIDS = [path.stem for path in FILES if path.stem.startswith("bench_")]
NAMES = [path.stem for path in FILES if path.stem not in GRIDS]
PREFIXES = {"movielens_quality": "latest-small_"}


def cases() -> list[tuple[str, tuple[str, ...]]]:
    modes = {n: getattr(importlib.import_module(f"configs.{n}"), "MODES", ()) for n in NAMES}
    named = {n: [(PREFIXES.get(n, "") + mode,) for mode in modes[n]] for n in NAMES}
    return [(n, argument) for n in NAMES for argument in ((), *named[n])]


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


@pytest.mark.parametrize(
    "name", [n for n in NAMES if hasattr(importlib.import_module(f"configs.{n}"), "MODES")]
)
def test_other_arguments_are_refused_by_name(name):
    module = importlib.import_module(f"configs.{name}")
    with pytest.raises(ConfigError, match="config argument 'nonsense': allowed are"):
        module.get_config("nonsense")


def test_discoveries_are_ranked_without_own_items():
    config = importlib.import_module("configs.completejourney_hstu").get_config("discover")
    assert config.layout.mode == "compressed"
    assert config.model.item_bias
    assert config.eval.filter_seen
    assert config.model.repeat_half_lives == config.model.repeat_half_times == ()
