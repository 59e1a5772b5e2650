"""What every single value of a configuration may be: its type, its choices, its bounds."""

import dataclasses
import math
from typing import Any

from jaxrec.config.fields import Config
from jaxrec.errors import ConfigError

CHOICES: dict[str, tuple[str, ...]] = {
    "data.dataset": (
        "completejourney",
        "movielens",
        "merrec",
        "ebnerd",
        "amazon_reviews",
        "kuairand",
        "yambda",
        "table",
        "synthetic",
    ),
    "data.duplicates": ("keep", "drop"),
    "data.repeats": ("keep", "consecutive", "first"),
    "data.incomplete": ("refuse", "drop"),
    "data.time_unit": ("s", "ms", "us", "ns"),
    "data.split": ("last", "time"),
    "layout.mode": ("compressed", "full", "recent"),
    "layout.positions": ("segment", "absolute"),
    "model.backbone": ("hstu", "sasrec", "llama"),
    "model.dtype": ("float32", "bfloat16"),
    "model.remat_keep": ("nothing", "products"),
    "model.item_hash": ("none", "quotient", "hash"),
    "model.state": ("kv", "embedding"),
    "model.attention": ("blocked", "dense"),
    "model.hstu.activation": ("silu", "none"),
    "model.sasrec.block": ("classic", "modern"),
    "model.llama.rope_scaling": ("none", "linear", "llama3"),
    "model.texts.pooling": ("mean", "token", ""),
    "model.texts.train": ("frozen", "full", "lora"),
    "loss.kind": ("softmax", "sampled_softmax", "bce", "gbce"),
    "loss.similarity": ("dot", "cosine"),
    "loss.sampling": ("uniform", "popularity"),
    "train.table_update": ("adamw", "adagrad", "adam"),
    "train.schedule": ("cosine", "linear", "constant"),
    "eval.split": ("test", "validation"),
    "serving.encoding": ("float32", "bfloat16", "int8"),
}

# inclusive bounds; None: open
BOUNDS: dict[str, tuple[float | None, float | None]] = {
    "seed": (0, 2**31 - 1),
    "data.seed": (0, 2**31 - 1),
    "data.min_item_events": (1, None),
    "data.min_user_events": (1, None),
    "data.max_user_events": (0, None),
    "data.prepare_workers": (1, None),
    "data.holdout": (1, None),
    "data.validation_time": (0, 1),
    "data.test_time": (0, 1),
    "data.workers": (0, None),
    "data.worker_processes": (0, None),
    "data.synthetic.users": (1, None),
    "data.synthetic.items": (2, None),
    "data.synthetic.events": (4, None),
    "data.synthetic.interests": (1, None),
    "data.synthetic.returns": (0, 1),
    "data.synthetic.gap": (0, None),
    "layout.segment_size": (1, None),
    "layout.tokens": (1, None),
    "layout.max_segments": (1, None),
    "layout.recent_min": (0, None),
    "model.width": (1, None),
    "model.item_width": (0, None),
    "model.item_rows": (0, 2**31 - 2),
    "model.layers": (1, None),
    "model.heads": (1, None),
    "model.dropout": (0, 0.99),
    "model.embed_dropout": (0, 0.99),
    "model.hstu.normalizer": (0, None),
    "model.sasrec.ffn_width": (0, None),
    "model.llama.kv_heads": (0, None),
    "model.llama.head_width": (0, None),
    "model.llama.ffn_width": (0, None),
    "model.llama.norm_eps": (0, 1),
    "model.llama.rope_theta": (1, None),
    "model.llama.rope_factor": (1, None),
    "model.llama.rope_low": (0, None),
    "model.llama.rope_high": (0, None),
    "model.llama.rope_length": (1, None),
    "model.llama.lora_rank": (0, None),
    "model.llama.lora_alpha": (0, None),
    "model.texts.max_tokens": (1, None),
    "model.texts.rows": (1, None),
    "model.texts.lora_rank": (1, None),
    "model.texts.lora_alpha": (0, None),
    "loss.temperature": (0, None),
    "loss.negatives": (1, None),
    "loss.false_negative": (-1, 1),
    "loss.gbce_t": (0, 1),
    "loss.negative_groups": (1, None),
    "loss.token_weight": (0, None),
    "loss.consistency": (0, None),
    "loss.chunk": (1, None),
    "train.steps": (1, None),
    "train.batch_size": (1, None),
    "train.grad_accum_steps": (1, None),
    "train.learning_rate": (0, None),
    "train.warmup": (0, None),
    "train.final_lr_fraction": (0, 1),
    "train.weight_decay": (0, None),
    "train.grad_clip_norm": (0, None),
    "train.ema": (0, 0.999999),
    "train.item_dropout": (0, 0.99),
    "train.log_every": (1, None),
    "train.eval_every": (1, None),
    "train.checkpoint_every": (1, None),
    "train.keep": (1, None),
    "train.patience": (0, None),
    "train.validation_users": (0, None),
    "eval.batch_size": (1, None),
    "eval.bootstrap": (0, None),
    "eval.chunk": (1, None),
    "mesh.data": (0, None),
    "mesh.fsdp": (1, None),
    "mesh.model": (1, None),
    "serving.keep_seen": (0, None),
    "serving.num_shards": (1, 4096),
}


def lookup(config: Any, key: str) -> Any:
    """The value behind a dotted key, `lookup(config, "model.hstu.normalizer")`."""
    for part in key.split("."):
        config = getattr(config, part)
    return config


def check_values(config: Config) -> None:
    """Raises ConfigError where a value is not of its type, its choices or inside its bounds."""
    check_types(config, Config(), "")
    for key, allowed in CHOICES.items():
        value = lookup(config, key)
        if value not in allowed:
            raise ConfigError(f"{key}={value!r}: allowed are {', '.join(allowed)}")
    for key, (low, high) in BOUNDS.items():
        value = lookup(config, key)
        below, above = low is not None and value < low, high is not None and value > high
        if below or above or not -math.inf < value < math.inf:
            raise ConfigError(
                f"{key}={value!r}: allowed is {low} to {'any' if high is None else high}"
            )


def check_types(config: Any, default: Any, prefix: str) -> None:
    """Raises ConfigError where a value is not of its default's type (an int is a float)."""
    for field in dataclasses.fields(default):
        key, kind = f"{prefix}{field.name}", type(getattr(default, field.name))
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(kind):
            check_types(value, getattr(default, field.name), f"{key}.")
        elif kind in (int, float):
            allowed, needed = (int, "an integer") if kind is int else (int | float, "a number")
            if isinstance(value, bool) or not isinstance(value, allowed):
                raise ConfigError(f"{key}={value!r}: {needed} is needed")
        elif not isinstance(value, kind):
            raise ConfigError(f"{key}={value!r}: a {kind.__name__} is needed")
