import importlib

import pytest

from jaxrec.config import Config, validate
from jaxrec.data import prepare
from jaxrec.errors import ConfigError, DataError


def refused(match, **values):
    config = Config()
    for key, value in values.items():
        setattr(config.data, key, value)
    with pytest.raises(ConfigError, match=match):
        validate(config)


def test_values_that_do_not_fit_together():
    refused(r"data\.path=''.*yambda needs the files", dataset="yambda")
    refused(r"data\.time_zone='Europe/Bärlin': no such", time_zone="Europe/Bärlin")
    refused(r"data\.max_user_events=3: .*data\.min_user_events=5", max_user_events=3)
    refused(r"data\.event_types=\('buy', ''\)", event_types=("buy", ""))
    refused(r"data\.append=\(3,\)", append=(3,))
    refused(r"data\.append=\('x',\): .*synthetic has no", append=("x",), dataset="synthetic")
    refused(r"data\.repeats='twice': allowed are keep, consecutive, first", repeats="twice")
    refused(r"data\.incomplete='keep': allowed are refuse, drop", incomplete="keep")
    refused(r"data\.time_unit='minutes'", time_unit="minutes")
    refused(r"data\.prepare_workers=0", prepare_workers=0)
    refused(r"data\.prepare_memory=10", prepare_memory=10)


def test_keys_of_a_table_are_refused_elsewhere(tmp_path):
    config = Config().data
    config.time_unit = "ms"
    with pytest.raises(DataError, match=r"data\.time_unit='ms': only data\.dataset=table"):
        prepare(config, tmp_path)


@pytest.mark.parametrize("name", ["merrec", "ebnerd", "amazon", "kuairand", "yambda", "table"])
def test_recipes_are_valid(name):
    recipe = importlib.import_module(f"configs.{name}")
    config = recipe.get_config()
    config.data.path = "somewhere"
    assert validate(config).data.dataset.startswith(name)
    assert f"configs/{name}.py" in recipe.__doc__
