"""The configuration: every bad value is named, JSON keeps everything."""

import dataclasses
import json
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxrec import config as configs
from jaxrec.config import BOUNDS, CHOICES, Config
from jaxrec.errors import ConfigError


def put(config, key, value):
    """Sets the field behind a dotted key."""
    *path, name = key.split(".")
    for part in path:
        config = getattr(config, part)
    assert hasattr(config, name), key
    setattr(config, name, value)


def leaves(kind, prefix=""):
    """(dotted key, default) of every field."""
    for field in dataclasses.fields(kind):
        value = getattr(kind, field.name)
        if dataclasses.is_dataclass(value):
            yield from leaves(value, f"{prefix}{field.name}.")
        else:
            yield f"{prefix}{field.name}", value


DEFAULTS = dict(leaves(Config()))


def refused(key, value, *words, config=None):
    """`validate` refuses the value with a message that names key, value and `words`."""
    config = config or Config()
    put(config, key, value)
    with pytest.raises(ConfigError) as error:
        configs.validate(config)
    message = str(error.value)
    for word in (key, repr(value), *words):
        assert word in message, message


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
            config.train.frozen = ("^item_embedding",)
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


# -- values that must agree ---------------------------------------------------------------------


def test_width_must_be_a_multiple_of_heads():
    config = Config()
    config.model.heads = 3
    refused("model.width", 64, "model.heads=3", config=config)


def test_empty_recent_window():
    config = Config()
    config.layout.segment_size = 1
    refused("layout.recent_min", 0, "layout.segment_size=1", "recent window", config=config)
    config.layout.recent_min = 1
    assert configs.validate(config).layout.recent == 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"loss.negative_groups": 3}, r"loss\.negative_groups=3: must divide .* = 16"),
        ({"train.grad_accum_steps": 4, "loss.negative_groups": 8}, r"must divide .* = 4"),
        ({"loss.negative_groups": 4, "loss.kind": "softmax"}, r"negative_groups=4: loss\.kind"),
        (
            {"loss.negative_groups": 4, "train.table_update": "adagrad"},
            r"negative_groups=4: train\.table_update='adagrad'",
        ),
        ({"loss.consistency": 0.5, "model.state": "embedding"}, r"loss\.consistency=0\.5: .*kv"),
    ],
)
def test_negatives_and_views_that_cannot_work(changes, message):
    config = Config()
    config.loss.kind = "sampled_softmax"
    for key, value in changes.items():
        put(config, key, value)
    with pytest.raises(ConfigError, match=message):
        configs.validate(config)


def test_split_times_must_increase():
    config = Config()
    config.data.split = "time"
    config.data.test_time = 0.5
    refused("data.validation_time", 0.5, "data.test_time=0.5", config=config)


def test_a_table_needs_a_path():
    config = Config()
    config.data.dataset = "table"
    refused("data.path", "", "table", config=config)


@pytest.mark.parametrize("ks", [(), (0,), (5, -1), (1.5,), (True,)])
def test_ranks(ks):
    refused("eval.ks", ks, "positive integers")


@pytest.mark.parametrize("buckets", [(200, 100), (100, 100)])
def test_bucket_edges_increase(buckets):
    refused("eval.buckets", buckets, "increase")


@pytest.mark.parametrize("buckets", [(0, 100), (-5,), ("a",), (1.5, 2), (True,)])
def test_bucket_edges_are_numbers_of_events(buckets):
    refused("eval.buckets", buckets, "positive integers")


@pytest.mark.parametrize("metric", ["ndcg", "ndcg@", "ndcg@0", "auc@10", "ndcg@x", "ndcg@-1"])
def test_selection_metric(metric):
    refused("train.metric", metric, "recall@K")


@pytest.mark.parametrize("metric", ["ndcg@10", "recall@200", "mrr@1"])
def test_selection_metrics_that_exist(metric):
    config = Config()
    config.train.metric = metric
    configs.validate(config)


# -- derived sizes --------------------------------------------------------------------------------


def test_layout_sizes():
    layout = configs.LayoutConfig(segment_size=100, max_segments=4, recent_min=1)
    assert layout.recent == 100
    assert layout.history == 500


# -- JSON -----------------------------------------------------------------------------------------


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


def test_lookup():
    assert configs.lookup(Config(), "model.hstu.normalizer") == 0.0


# -- digest ---------------------------------------------------------------------------------------


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
