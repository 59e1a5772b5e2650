"""Whether the values of a configuration fit together, one function per topic.

Every refusal is one line: the key, its value, and what would be allowed.
"""

import re
import zoneinfo
from collections.abc import Sequence

from jaxrec.config.fields import Config
from jaxrec.config.training_fields import LOGGERS
from jaxrec.config.value_checks import check_values, lookup
from jaxrec.errors import ConfigError

# data sets that nothing downloads or generates
_NEEDS_PATH = ("merrec", "ebnerd", "amazon_reviews", "kuairand", "yambda", "table", "planted")
_WITHOUT_LATER_EVENTS = ("completejourney", "synthetic", "planted")
_SAMPLED = "loss.kind=sampled_softmax, bce or gbce"


def validate(config: Config) -> Config:
    """Returns `config` when every value can work; raises ConfigError otherwise."""
    check_values(config)
    _check_heads(config)
    _check_llama(config)
    _check_layout(config)
    _check_texts(config)
    _check_shared_rows(config)
    _check_item_bias(config)
    _check_repeats(config)
    _check_batches(config)
    _check_negative_groups(config)
    _check_consistency(config)
    _check_table_update(config)
    _check_training(config)
    _check_splits(config)
    _check_data(config)
    _check_eval(config)
    return config


def _refusal(config: Config, key: str, reason: str) -> ConfigError:
    """The error `KEY=VALUE: REASON`, with the value that the key has."""
    return ConfigError(f"{key}={lookup(config, key)!r}: {reason}")


def _check_heads(config: Config) -> None:
    """Heads divide the width, unless Llama's heads have a width of their own."""
    model = config.model
    free = model.backbone == "llama" and model.llama.head_width
    if model.width % model.heads and not free:
        raise _refusal(config, "model.width", f"must be a multiple of model.heads={model.heads}")


def _check_llama(config: Config) -> None:
    model, llama = config.model, config.model.llama
    if model.backbone != "llama":
        return
    if model.heads % model.kv_heads:
        raise _refusal(config, "model.llama.kv_heads", f"must divide model.heads={model.heads}")
    if model.head_width % 2:
        raise ConfigError(
            f"model.llama.head_width={model.head_width}: must be even, rotary positions turn pairs "
            "of dimensions (0: model.width / model.heads)"
        )
    if llama.rope_scaling == "llama3" and llama.rope_low >= llama.rope_high:
        raise _refusal(
            config,
            "model.llama.rope_low",
            f"must be below model.llama.rope_high={llama.rope_high}",
        )
    if config.layout.positions != "segment":
        raise _refusal(
            config,
            "layout.positions",
            "model.backbone=llama needs 'segment', its keys are rotated by the offset inside the "
            "segment",
        )


def _check_layout(config: Config) -> None:
    layout = config.layout
    if layout.recent < 1:
        raise _refusal(
            config,
            "layout.recent_min",
            f"with layout.segment_size={layout.segment_size} the recent window would be empty",
        )
    if (layout.window or layout.prefix) and layout.mode != "full":
        key = "layout.window" if layout.window else "layout.prefix"
        raise _refusal(
            config, key, f"layout.mode={layout.mode!r} has none; needed is layout.mode=full"
        )
    if layout.prefix and not layout.window:
        raise _refusal(
            config, "layout.prefix", "without layout.window every position sees everything"
        )
    model = config.model
    same = model.token_input == "learned" and model.state == "kv" and layout.positions == "segment"
    if layout.mode == "compressed" and model.layers == 1 and same:
        raise _refusal(
            config,
            "model.layers",
            "in the first layer tokens that start from learned vectors are the same for everybody, "
            "so they would carry nothing; take 2 layers or model.token_input=pooled",
        )
    if model.token_distance and layout.positions != "segment":
        raise _refusal(
            config,
            "model.token_distance",
            f"layout.positions={layout.positions!r} does not tell how old a token is; 'segment' is "
            "needed",
        )


def _check_texts(config: Config) -> None:
    """What item vectors from texts, frozen or trained, cannot be combined with."""
    texts, loss = config.model.texts, config.loss
    if texts.model and config.train.table_update != "adamw":
        raise _refusal(
            config,
            "train.table_update",
            "vectors of texts are not updated, model.texts.model needs 'adamw'",
        )
    if texts.user_model and config.model.backbone != "llama":
        raise _refusal(
            config,
            "model.texts.user_model",
            f"model.backbone={config.model.backbone!r} cannot start from a Llama model, 'llama' "
            "is needed",
        )
    if texts.train == "frozen":
        return
    if not texts.model:
        raise _refusal(
            config, "model.texts.train", "there is no item tower, model.texts.model is empty"
        )
    if loss.kind == "softmax":
        raise _refusal(
            config,
            "model.texts.train",
            "loss.kind='softmax' would encode the whole catalog in every step; needed is "
            f"{_SAMPLED}",
        )
    if loss.negative_groups > 1:
        raise _refusal(
            config,
            "loss.negative_groups",
            f"model.texts.train={texts.train!r} encodes one set of negatives for a step; needed "
            "is 1",
        )


def _check_shared_rows(config: Config) -> None:
    """Item tables whose rows several items share."""
    model = config.model
    if model.item_hash == "none":
        if model.item_rows:
            raise _refusal(config, "model.item_rows", "with model.item_hash='none' 0 is needed")
        return
    if not model.item_rows:
        raise _refusal(
            config,
            "model.item_rows",
            f"with model.item_hash={model.item_hash!r} the number of shared rows is needed",
        )
    if model.texts.model:
        raise _refusal(
            config,
            "model.item_hash",
            "model.texts.model gives every item its own vector; needed is model.item_hash=none",
        )
    if config.loss.kind == "softmax" and config.mesh.model > 1:
        raise _refusal(
            config,
            "model.item_hash",
            "loss.kind='softmax' makes all vectors on every device; with "
            f"mesh.model={config.mesh.model} needed is {_SAMPLED}",
        )


def _check_item_bias(config: Config) -> None:
    model = config.model
    if not model.item_bias:
        return
    if model.item_hash != "none":
        raise _refusal(
            config,
            "model.item_bias",
            f"model.item_hash={model.item_hash!r} has no row per item that could hold it; needed "
            "is model.item_hash=none",
        )
    if model.texts.model:
        raise _refusal(
            config,
            "model.item_bias",
            "with model.texts.model items without events are to be found by their texts, a score "
            "by popularity would bury them; needed is False",
        )


def _check_repeats(config: Config) -> None:
    """Counts of history items in scores."""
    model = config.model
    half_lives = model.repeat_half_lives + model.repeat_half_times
    if not all(_is_number(value) and value >= 0 for value in half_lives):
        raise ConfigError(
            f"model.repeat_half_lives={model.repeat_half_lives!r}, "
            f"model.repeat_half_times={model.repeat_half_times!r}: numbers of events and "
            "seconds are needed, 0 for never"
        )
    if half_lives and config.loss.kind == "softmax":
        raise ConfigError(
            f"model.repeat_half_lives={half_lives!r}: needs {_SAMPLED}; loss.kind='softmax' "
            "compares with the whole catalog at once"
        )


def _check_batches(config: Config) -> None:
    train = config.train
    if train.batch_size % train.grad_accum_steps:
        raise _refusal(
            config, "train.grad_accum_steps", f"must divide train.batch_size={train.batch_size}"
        )


def _check_negative_groups(config: Config) -> None:
    """Groups of a batch's users that draw negatives of their own."""
    train, loss = config.train, config.loss
    rows = train.batch_size // train.grad_accum_steps
    if rows % loss.negative_groups:
        raise _refusal(
            config,
            "loss.negative_groups",
            f"must divide train.batch_size / train.grad_accum_steps = {rows}",
        )
    if loss.negative_groups == 1:
        return
    if loss.kind == "softmax":
        raise _refusal(
            config,
            "loss.negative_groups",
            "loss.kind='softmax' draws no negatives; needed is sampled_softmax, bce or gbce",
        )
    if train.table_update != "adamw":
        raise _refusal(
            config,
            "loss.negative_groups",
            f"train.table_update={train.table_update!r} draws one set of negatives for a step; "
            "needed is train.table_update=adamw",
        )


def _check_consistency(config: Config) -> None:
    if config.loss.consistency and config.model.state == "embedding":
        raise _refusal(
            config,
            "loss.consistency",
            "model.state='embedding' computes segments in turn and has no view of all items; "
            "needed is model.state=kv",
        )


def _check_table_update(config: Config) -> None:
    """Optimizers that update only the rows of the item table that a step touches."""
    train = config.train
    if train.table_update == "adamw":
        return
    if config.loss.kind == "softmax":
        raise _refusal(
            config,
            "train.table_update",
            f"loss.kind='softmax' moves every row of the table; needed is {_SAMPLED}",
        )
    if train.ema:
        raise _refusal(
            config,
            "train.ema",
            "averages every row of the table in every step; train.table_update=adagrad or adam "
            "needs train.ema=0",
        )


def _check_training(config: Config) -> None:
    """Keys of training whose strings have a syntax: patterns, ranges, names, metrics."""
    train = config.train
    for pattern in train.frozen:
        try:
            re.compile(pattern)
        except (re.error, TypeError) as error:
            raise _refusal(
                config, "train.frozen", f"{pattern!r} is no regular expression ({error})"
            ) from error
    if train.init_from and config.model.texts.train != "frozen":
        raise _refusal(
            config,
            "train.init_from",
            "the item tower of another run is not read; needed is model.texts.train=frozen",
        )
    first, _, last = train.profile_steps.partition(":")
    steps = first.isdigit() and last.isdigit() and int(first) < int(last)
    if train.profile_steps and not steps:
        raise _refusal(config, "train.profile_steps", "allowed is A:B, A below B")
    wrong = [name for name in train.loggers.split(",") if train.loggers and name not in LOGGERS]
    if wrong:
        raise _refusal(config, "train.loggers", f"{wrong[0]!r} is none of {', '.join(LOGGERS)}")
    metric, _, rank = train.metric.partition("@")
    if metric not in ("recall", "ndcg", "mrr") or not rank.isdigit() or int(rank) < 1:
        raise _refusal(config, "train.metric", "allowed is recall@K, ndcg@K or mrr@K")


def _check_splits(config: Config) -> None:
    data = config.data
    if data.split == "time" and data.validation_time >= data.test_time:
        raise _refusal(
            config, "data.validation_time", f"must be below data.test_time={data.test_time}"
        )


def _check_data(config: Config) -> None:
    data = config.data
    if data.dataset in _NEEDS_PATH and not data.path:
        raise _refusal(
            config, "data.path", f"data.dataset={data.dataset} needs the files it is made from"
        )
    if data.time_zone:
        try:
            zoneinfo.ZoneInfo(data.time_zone)
        except (zoneinfo.ZoneInfoNotFoundError, ValueError, OSError) as error:
            raise _refusal(
                config,
                "data.time_zone",
                "no such time zone; allowed are names such as Europe/Berlin",
            ) from error
    if data.max_user_events and data.max_user_events < data.min_user_events:
        raise _refusal(
            config,
            "data.max_user_events",
            f"must be 0 or at least data.min_user_events={data.min_user_events}",
        )
    for key in ("data.event_types", "data.append", "data.text_columns"):
        if not all(isinstance(text, str) and text for text in lookup(config, key)):
            raise _refusal(config, key, "texts that are not empty are needed")
    planted = data.planted
    if data.dataset == "planted" and planted.reach < planted.gap + planted.spread:
        raise _refusal(
            config,
            "data.planted.reach",
            f"items are due after up to data.planted.gap={planted.gap} + "
            f"data.planted.spread={planted.spread} events; it must not be below that",
        )
    if data.append and data.dataset in _WITHOUT_LATER_EVENTS:
        raise _refusal(config, "data.append", f"data.dataset={data.dataset} has no later events")


def _check_eval(config: Config) -> None:
    ks, buckets = config.eval.ks, config.eval.buckets
    if not ks or not _are_positive_integers(ks):
        raise _refusal(config, "eval.ks", "one or more positive integers are needed")
    if not _are_positive_integers(buckets):
        raise _refusal(config, "eval.buckets", "positive integers are needed")
    if list(buckets) != sorted(set(buckets)):
        raise _refusal(config, "eval.buckets", "edges must increase")


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _are_positive_integers(values: Sequence[object]) -> bool:
    return all(
        isinstance(value, int) and not isinstance(value, bool) and value >= 1 for value in values
    )
