"""Single values: every wrong type, choice or bound is refused by name."""

import pytest

from jaxrec import config as configs
from jaxrec.config import BOUNDS, CHOICES, Config
from tests.config.keys import DEFAULTS, put, refused


def test_defaults_are_valid_and_returned():
    config = Config()
    assert configs.validate(config) is config


@pytest.mark.parametrize("key", CHOICES)
def test_unknown_choices_are_refused(key):
    refused(key, "nonsense", *CHOICES[key])


@pytest.mark.parametrize("key", CHOICES)
def test_every_choice_is_accepted(key):
    for value in CHOICES[key]:
        config = Config()
        config.data.path = "events.parquet"
        if key == "train.table_update":  # updates of single rows need a loss over few items
            config.loss.kind, config.train.ema = "sampled_softmax", 0.0
        if key == "model.texts.train":  # there must be a tower
            config.loss.kind, config.model.texts.model = "sampled_softmax", "folder"
        if key == "model.item_hash" and value != "none":  # rows that items share
            config.model.item_rows = 64
        put(config, key, value)
        configs.validate(config)


@pytest.mark.parametrize("key", BOUNDS)
def test_values_outside_of_bounds_are_refused(key):
    low, high = BOUNDS[key]
    if low is not None:
        refused(key, low - 1, str(low))
    if high is not None:
        refused(key, high + 1, str(low), str(high))
    if isinstance(DEFAULTS[key], float):
        refused(key, float("nan"))


@pytest.mark.parametrize("key", sorted(DEFAULTS))
def test_values_of_another_type_are_refused(key):
    default = DEFAULTS[key]
    refused(key, None, "needed")
    if isinstance(default, bool):
        refused(key, 1, "bool")
    elif isinstance(default, int):
        refused(key, 7.5, "integer")
        refused(key, True, "integer")
        refused(key, "7", "integer")
    elif isinstance(default, float):
        refused(key, "7", "number")
        refused(key, True, "number")
    else:
        refused(key, 7, type(default).__name__)


def test_an_integer_is_a_float():
    config = Config()
    config.train.weight_decay = 1
    configs.validate(config)


def test_every_number_has_bounds():
    """A number that is checked by nothing would fail somewhere deep in a run."""
    numbers = {k for k, v in DEFAULTS.items() if isinstance(v, int | float) and v is not True}
    numbers = {k for k in numbers if not isinstance(DEFAULTS[k], bool)}
    assert numbers == set(BOUNDS)


@pytest.mark.parametrize("key", ["train.learning_rate", "train.grad_clip_norm", "loss.temperature"])
def test_infinite_numbers_are_refused(key):
    refused(key, float("inf"), "allowed is 0 to any")


def test_choices_and_bounds_name_fields():
    assert set(CHOICES) | set(BOUNDS) <= set(DEFAULTS)


def test_defaults_lie_inside_their_choices():
    for key, allowed in CHOICES.items():
        assert DEFAULTS[key] in allowed


def test_lookup():
    assert configs.lookup(Config(), "model.hstu.normalizer") == 0.0
