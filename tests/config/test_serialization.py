"""JSON keeps every value; the digest sees every value."""

import json
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxrec import config as configs
from jaxrec.config import Config
from jaxrec.errors import ConfigError
from tests.config.keys import DEFAULTS, leaves, put


@settings(deadline=None, max_examples=40)
@given(st.data())
def test_json_round_trip(data):
    """Any change of any field survives, tuples and nesting included."""
    config = Config()
    values = {
        bool: st.booleans(),
        int: st.integers(-(2**40), 2**40),
        float: st.floats(allow_nan=False, allow_infinity=False),
        str: st.text(max_size=8),
    }
    for key in data.draw(st.lists(st.sampled_from(sorted(DEFAULTS)), max_size=8)):
        default = DEFAULTS[key]
        if isinstance(default, tuple):
            kind = st.text(max_size=4) if key.endswith("columns") else st.integers(1, 99)
            value = tuple(data.draw(st.lists(kind, max_size=3)))
        else:
            value = data.draw(values[type(default)])
        put(config, key, value)
    again = configs.from_json(configs.to_json(config))
    assert again == config
    assert configs.to_json(again) == configs.to_json(config)
    assert dict(leaves(again)) == dict(leaves(config))


def test_json_is_canonical():
    text = configs.to_json(Config())
    assert text == json.dumps(json.loads(text), indent=2, sort_keys=True)


def test_missing_keys_take_their_defaults():
    config = configs.from_json('{"model": {"width": 32}}')
    assert config.model.width == 32
    config.model.width = Config().model.width
    assert config == Config()


@pytest.mark.parametrize(
    ("text", "key", "known"),
    [
        ('{"modle": {}}', "modle", "model"),
        ('{"model": {"widht": 3}}', "model.widht", "width"),
        ('{"model": {"hstu": {"bias": 1}}}', "model.hstu.bias", "position_bias"),
    ],
)
def test_unknown_keys_are_refused(text, key, known):
    with pytest.raises(ConfigError, match=rf"unknown config key {re.escape(key)}: .*\b{known}\b"):
        configs.from_json(text)


@pytest.mark.parametrize(
    ("text", "name"), [('{"model": 3}', "model=3"), ("[1]", "the config"), ("{", "no JSON")]
)
def test_json_of_another_shape_is_refused(text, name):
    with pytest.raises(ConfigError, match=name):
        configs.from_json(text)


def test_digest_identifies_values():
    a, b = Config(), Config()
    assert configs.digest(a) == configs.digest(b)
    assert re.fullmatch(r"[0-9a-f]{12}", configs.digest(a))
    b.data.seed = 1
    assert configs.digest(a.data) != configs.digest(b.data)
    assert configs.digest(a.model) == configs.digest(b.model)
    assert configs.digest(a.data, "x") != configs.digest(a.data)
    assert configs.digest({"b": 1, "a": 2}) == configs.digest({"a": 2, "b": 1})


@pytest.mark.parametrize("key", sorted(DEFAULTS))
def test_digest_sees_every_field(key):
    changed = Config()
    default = DEFAULTS[key]
    put(changed, key, not default if isinstance(default, bool) else (default, "changed"))
    assert configs.digest(changed) != configs.digest(Config())
