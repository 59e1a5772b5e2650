"""Values that do not fit together are refused, with the keys that disagree."""

import pytest

from jaxrec import config as configs
from jaxrec.config import Config
from jaxrec.errors import ConfigError
from jaxrec.model import parameters
from tests.config.keys import put, refused


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


# -- item vectors from texts ------------------------------------------------------------------


@pytest.mark.parametrize("train", ["frozen", "full", "lora"])
def test_the_item_table_of_texts_needs_no_pattern(train):
    """Nothing is typed into train.frozen: the table is left alone because it holds texts."""
    config = Config()
    config.model.texts.model, config.model.texts.train = "folder", train
    config.loss.kind = "sampled_softmax"
    assert config.train.frozen == ()
    assert configs.validate(config) is config
    is_trained = parameters.is_trained(config)
    for path in ("item/embedding", "item/mean", "item/scale"):
        assert not is_trained(path), path
    assert is_trained("compressor/encoder/layers/out/kernel")


def test_learned_item_vectors_are_trained():
    is_trained = parameters.is_trained(configs.validate(Config()))
    assert is_trained("item/embedding")


def test_patterns_of_frozen_parameters_are_regular_expressions():
    refused("train.frozen", ("^items", "("), "'(' is no regular expression")


def test_tokens_of_one_layer_carry_nothing_unless_they_start_from_the_segment():
    config = Config()
    config.model.layers = 1
    with pytest.raises(ConfigError, match=r"model\.layers=1.*model\.token_input=pooled"):
        configs.validate(config)
    config.model.token_input = "pooled"
    configs.validate(config)
    config.model.token_input, config.layout.mode = "learned", "full"
    configs.validate(config)


def test_the_age_of_a_token_is_known_in_segments():
    config = Config()
    config.model.token_distance = True
    configs.validate(config)
    config.layout.positions = "absolute"
    with pytest.raises(ConfigError, match=r"model\.token_distance.*positions='absolute'"):
        configs.validate(config)


def test_semi_local_attention_is_of_full_history():
    config = Config()
    config.layout.window = 8
    with pytest.raises(ConfigError, match=r"layout\.window=8: layout\.mode='compressed' has none"):
        configs.validate(config)
    config.layout.mode = "full"
    configs.validate(config)
    config.layout.window, config.layout.prefix = 0, 3
    with pytest.raises(ConfigError, match=r"layout\.prefix=3: without layout\.window"):
        configs.validate(config)


# -- derived sizes ----------------------------------------------------------------------------


def test_layout_sizes():
    layout = configs.LayoutConfig(segment_size=100, max_segments=4, recent_min=1)
    assert layout.recent == 100
    assert layout.history == 500
