"""Whether the values of a configuration fit together."""

import re
import zoneinfo

from jaxrec.config.fields import Config, DataConfig, EvalConfig
from jaxrec.config.rules import check_values
from jaxrec.errors import ConfigError

_NEEDS_PATH = ("merrec", "ebnerd", "amazon_reviews", "kuairand", "yambda", "table")


def validate(config: Config) -> Config:
    """Returns `config` when every value can work; raises ConfigError otherwise."""
    check_values(config)
    free = config.model.backbone == "llama" and config.model.llama.head_width
    if config.model.width % config.model.heads and not free:
        raise ConfigError(
            f"model.width={config.model.width}: must be a multiple of "
            f"model.heads={config.model.heads}"
        )
    if config.model.backbone == "llama":
        _check_llama(config)
    _check_texts(config)
    _check_item_rows(config)
    _check_item_bias(config)
    half_lives = config.model.repeat_half_lives + config.model.repeat_half_times
    if any(isinstance(h, bool) or not isinstance(h, int | float) or not h >= 0 for h in half_lives):
        raise ConfigError(
            f"model.repeat_half_lives={config.model.repeat_half_lives!r}, "
            f"model.repeat_half_times={config.model.repeat_half_times!r}: numbers of events and "
            "seconds are needed, 0 for never"
        )
    if half_lives and config.loss.kind == "softmax":
        raise ConfigError(
            f"model.repeat_half_lives={half_lives!r}: needs loss.kind=sampled_softmax, bce or "
            "gbce; loss.kind='softmax' compares with the whole catalog at once"
        )
    if config.train.batch_size % config.train.grad_accum_steps:
        raise ConfigError(
            f"train.grad_accum_steps={config.train.grad_accum_steps}: must divide "
            f"train.batch_size={config.train.batch_size}"
        )
    _check_views(config)
    first, _, last = config.train.profile_steps.partition(":")
    if config.train.profile_steps and not (
        first.isdigit() and last.isdigit() and int(first) < int(last)
    ):
        raise ConfigError(
            f"train.profile_steps={config.train.profile_steps!r}: allowed is A:B, A below B"
        )
    if config.train.table_update != "adamw":
        if config.loss.kind == "softmax":
            raise ConfigError(
                f"train.table_update={config.train.table_update!r}: loss.kind='softmax' moves "
                "every row of the table; needed is loss.kind=sampled_softmax, bce or gbce"
            )
        if config.train.ema:
            raise ConfigError(
                f"train.ema={config.train.ema}: averages every row of the table in every step; "
                "train.table_update=adagrad or adam needs train.ema=0"
            )
    if config.layout.recent < 1:
        raise ConfigError(
            f"layout.recent_min={config.layout.recent_min}: with "
            f"layout.segment_size={config.layout.segment_size} the recent window would be empty"
        )
    if config.data.split == "time" and config.data.validation_time >= config.data.test_time:
        raise ConfigError(
            f"data.validation_time={config.data.validation_time}: must be below "
            f"data.test_time={config.data.test_time}"
        )
    _check_data(config.data)
    _check_eval(config.eval)
    metric, _, k = config.train.metric.partition("@")
    if metric not in ("recall", "ndcg", "mrr") or not k.isdigit() or int(k) < 1:
        raise ConfigError(
            f"train.metric={config.train.metric!r}: allowed is recall@K, ndcg@K or mrr@K"
        )
    return config


def _check_views(config: Config) -> None:
    """What groups of negatives and the second view of a batch cannot be combined with."""
    groups, rows = (
        config.loss.negative_groups,
        config.train.batch_size // config.train.grad_accum_steps,
    )
    if rows % groups:
        raise ConfigError(
            f"loss.negative_groups={groups}: must divide "
            f"train.batch_size / train.grad_accum_steps = {rows}"
        )
    if groups > 1 and config.loss.kind == "softmax":
        raise ConfigError(
            f"loss.negative_groups={groups}: loss.kind='softmax' draws no negatives; needed is "
            "sampled_softmax, bce or gbce"
        )
    if groups > 1 and config.train.table_update != "adamw":
        raise ConfigError(
            f"loss.negative_groups={groups}: train.table_update={config.train.table_update!r} "
            "draws one set of negatives for a step; needed is train.table_update=adamw"
        )
    if config.loss.consistency and config.model.state == "embedding":
        raise ConfigError(
            f"loss.consistency={config.loss.consistency}: model.state='embedding' computes "
            "segments in turn and has no view of all items; needed is model.state=kv"
        )


def _check_eval(found: EvalConfig) -> None:
    for key, what in (("ks", "one or more positive integers"), ("buckets", "positive integers")):
        values = getattr(found, key)
        if any(isinstance(v, bool) or not isinstance(v, int) or v < 1 for v in values):
            raise ConfigError(f"eval.{key}={values!r}: {what} are needed")
    if not found.ks:
        raise ConfigError("eval.ks=(): one or more positive integers are needed")
    if list(found.buckets) != sorted(set(found.buckets)):
        raise ConfigError(f"eval.buckets={found.buckets!r}: edges must increase")


def _check_texts(config: Config) -> None:
    texts, frozen = config.model.texts, config.train.frozen
    for pattern in frozen:
        try:
            re.compile(pattern)
        except (re.error, TypeError) as error:
            raise ConfigError(
                f"train.frozen={frozen!r}: {pattern!r} is no regular expression ({error})"
            ) from error
    if texts.model and not any(re.search(pattern, "item_embedding") for pattern in frozen):
        raise ConfigError(
            f"train.frozen={frozen!r}: with model.texts.model the item table holds vectors of "
            "texts that training leaves alone; '^item_(embedding|mean|scale)' is needed in it"
        )
    if texts.model and config.train.table_update != "adamw":
        raise ConfigError(
            f"train.table_update={config.train.table_update!r}: vectors of texts are not updated, "
            "model.texts.model needs 'adamw'"
        )
    if texts.train != "frozen" and not texts.model:
        raise ConfigError(
            f"model.texts.train={texts.train!r}: there is no item tower, model.texts.model is empty"
        )
    if texts.train != "frozen" and config.loss.kind == "softmax":
        raise ConfigError(
            f"model.texts.train={texts.train!r}: loss.kind='softmax' would encode the whole "
            "catalog in every step; needed is loss.kind=sampled_softmax, bce or gbce"
        )
    if texts.train != "frozen" and config.loss.negative_groups > 1:
        raise ConfigError(
            f"loss.negative_groups={config.loss.negative_groups}: model.texts.train="
            f"{texts.train!r} encodes one set of negatives for a step; needed is 1"
        )
    if texts.user_model and config.model.backbone != "llama":
        raise ConfigError(
            f"model.texts.user_model={texts.user_model!r}: model.backbone="
            f"{config.model.backbone!r} cannot start from a Llama model, 'llama' is needed"
        )


def _check_item_rows(config: Config) -> None:
    model = config.model
    if (model.item_hash == "none") != (model.item_rows == 0):
        needed = "0 is" if model.item_hash == "none" else "the number of shared rows is"
        raise ConfigError(
            f"model.item_rows={model.item_rows}: with model.item_hash={model.item_hash!r} {needed} "
            "needed"
        )
    if model.item_hash == "none":
        return
    if model.texts.model:
        raise ConfigError(
            f"model.item_hash={model.item_hash!r}: model.texts.model gives every item a vector of "
            "its own; needed is model.item_hash=none"
        )
    if config.loss.kind == "softmax" and config.mesh.model > 1:
        raise ConfigError(
            f"model.item_hash={model.item_hash!r}: loss.kind='softmax' makes all vectors on "
            f"every device; with mesh.model={config.mesh.model} needed is loss.kind="
            "sampled_softmax, bce or gbce"
        )


def _check_item_bias(config: Config) -> None:
    model = config.model
    if model.item_bias and model.item_hash != "none":
        raise ConfigError(
            f"model.item_bias=True: model.item_hash={model.item_hash!r} has no row per item that "
            "could hold it; needed is model.item_hash=none"
        )
    if model.item_bias and model.texts.model:
        raise ConfigError(
            "model.item_bias=True: with model.texts.model items without events are to be found "
            "by their texts, a score by popularity would bury them; needed is False"
        )


def _check_llama(config: Config) -> None:
    model, llama = config.model, config.model.llama
    if model.heads % model.kv_heads:
        raise ConfigError(
            f"model.llama.kv_heads={llama.kv_heads}: must divide model.heads={model.heads}"
        )
    if model.head_width % 2:
        raise ConfigError(
            f"model.llama.head_width={model.head_width}: must be even, positions turn pairs of "
            "dimensions (0: model.width / model.heads)"
        )
    if llama.rope_scaling == "llama3" and llama.rope_low >= llama.rope_high:
        raise ConfigError(
            f"model.llama.rope_low={llama.rope_low}: must be below "
            f"model.llama.rope_high={llama.rope_high}"
        )
    if config.layout.positions != "segment":
        raise ConfigError(
            f"layout.positions={config.layout.positions!r}: model.backbone=llama needs 'segment', "
            "its keys are rotated by the offset inside the segment"
        )


def _check_data(data: DataConfig) -> None:
    """Raises ConfigError where keys of `data` do not fit together."""
    if data.dataset in _NEEDS_PATH and not data.path:
        raise ConfigError(
            f"data.path='': data.dataset={data.dataset} needs the files it is made from"
        )
    if data.time_zone:
        try:
            zoneinfo.ZoneInfo(data.time_zone)
        except (zoneinfo.ZoneInfoNotFoundError, ValueError, OSError) as error:
            raise ConfigError(
                f"data.time_zone={data.time_zone!r}: no such time zone; allowed are names such as "
                "Europe/Berlin"
            ) from error
    if data.max_user_events and data.max_user_events < data.min_user_events:
        raise ConfigError(
            f"data.max_user_events={data.max_user_events}: must be 0 or at least "
            f"data.min_user_events={data.min_user_events}"
        )
    for key in ("event_types", "append", "text_columns"):
        value = getattr(data, key)
        if any(not isinstance(part, str) or not part for part in value):
            raise ConfigError(f"data.{key}={value!r}: texts that are not empty are needed")
    if data.append and data.dataset in ("completejourney", "synthetic"):
        raise ConfigError(
            f"data.append={data.append!r}: data.dataset={data.dataset} has no later events"
        )
