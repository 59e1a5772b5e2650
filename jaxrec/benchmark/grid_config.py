"""Settings of `python -m jaxrec.benchmark`: a file's `get_config()` returns a `GridConfig`."""

import ast
import dataclasses
import hashlib
import json
from collections.abc import Sequence

from jaxrec.benchmark import config_file
from jaxrec.config import LossConfig, ModelConfig
from jaxrec.errors import ConfigError
from jaxrec.serving import buckets

METHODS = (
    "full",
    "recent",
    "compressed",
    "compressed_int8",
    "compressed_embedding",
    "semi_local",
    "mean_pooled",
)
WITH_TOKENS = tuple(name for name in METHODS if name.startswith("compressed"))


def _model() -> ModelConfig:
    config = ModelConfig(width=64, layers=4, heads=4)
    # a bias lookup per pair would slow full history most, so it is left out
    config.hstu.position_bias = config.hstu.time_bias = False
    return config


def _loss() -> LossConfig:
    return LossConfig(
        kind="sampled_softmax",
        similarity="cosine",
        temperature=0.05,
        negatives=256,
        sampling="uniform",
    )


@dataclasses.dataclass
class GridConfig:
    """What is measured.

    shapes: (history, segments), a history of that many events in equal segments. The last
    segment is the recent window, the others are compressed to `tokens` each.
    """

    shapes: tuple[tuple[int, int], ...] = ((512, 4),)
    tokens: tuple[int, ...] = (4,)
    methods: tuple[str, ...] = METHODS
    batches: tuple[int, ...] = (1,)  # users per request, sizes that serving compiles
    most_events: int = 32768  # batch x history; larger cells are left out
    local_window: int = 128  # semi-local attention: newest positions
    local_prefix: int = 16  # semi-local attention: first positions
    catalog: int = 20_000
    seconds: float = 6.0  # of requests per shape and batch, all methods together
    rounds: int = 100  # calls of every method at most; 3 at least
    train_batch: int = 8
    train_longest: int = 2048  # training steps of longer histories are not measured
    train_rounds: int = 3
    model: ModelConfig = dataclasses.field(default_factory=_model)
    loss: LossConfig = dataclasses.field(default_factory=_loss)


def validate(config: GridConfig) -> GridConfig:
    """Returns the configuration; raises ConfigError naming key, value and what is allowed."""
    for history, segments in config.shapes:
        if segments < 2 or history < segments or history % segments:
            raise ConfigError(
                f"shapes has ({history}, {segments}): a history of two or more equal segments "
                "is needed"
            )
    if not config.shapes:
        raise ConfigError("shapes=(): one (history, segments) at least is needed")
    if unknown := set(config.methods) - set(METHODS):
        raise ConfigError(f"methods has {sorted(unknown)}: known are {', '.join(METHODS)}")
    if "full" not in config.methods:
        raise ConfigError("methods has no 'full': ratios are to it")
    if bad := [b for b in config.batches if b not in buckets.USERS]:
        raise ConfigError(f"batches has {bad}: serving compiles {buckets.USERS}")
    for name in ("tokens", "batches"):
        values = getattr(config, name)
        if not values or min(values) < 1:
            raise ConfigError(f"{name}={values!r}: positive integers are needed")
    if config.model.backbone not in ("hstu", "sasrec"):
        raise ConfigError(f"model.backbone={config.model.backbone!r}: allowed are hstu, sasrec")
    if config.model.state != "kv":
        raise ConfigError("model.state='embedding': method compressed_embedding measures it")
    for name in ("rounds", "train_rounds"):
        if getattr(config, name) < 3:
            raise ConfigError(f"{name}={getattr(config, name)}: 3 at least, medians need them")
    return config


def load(text: str, overrides: Sequence[str] = ()) -> GridConfig:
    """The checked configuration of FILE.py[:argument] with `--config.key=value` applied.

    Raises ConfigError when the file, its function or a key is missing.
    """
    config = config_file.get_config(text, hint="; see configs/bench_*.py")
    if not isinstance(config, GridConfig):
        raise ConfigError(
            f"--config={text}: get_config returned a {type(config).__name__}, needed is a "
            "GridConfig, as in configs/bench_quick.py"
        )
    for override in overrides:
        _override(config, override)
    return validate(config)


def _override(config: GridConfig, text: str) -> None:
    name, equals, value = text.removeprefix("--config.").partition("=")
    if not text.startswith("--config.") or not equals:
        raise ConfigError(f"unexpected argument {text!r}: overrides are --config.key=value")
    *groups, last = name.split(".")
    group: object = config
    for key in groups:
        group = getattr(group, key, None)
    known = [f.name for f in dataclasses.fields(group)] if dataclasses.is_dataclass(group) else []
    if last not in known:
        raise ConfigError(f"unknown config key {name}: known are {', '.join(known) or 'none here'}")
    old = getattr(group, last)
    try:
        new = value if isinstance(old, str) else ast.literal_eval(value)
    except (ValueError, SyntaxError):
        raise ConfigError(f"--config.{name}={value}: not a {type(old).__name__}") from None
    if isinstance(old, float) and type(new) is int:
        new = float(new)
    if type(new) is not type(old):
        raise ConfigError(f"--config.{name}={value}: a {type(old).__name__} is needed")
    setattr(group, last, new)


def key_of(*facts: object) -> str:
    """Hash of everything that decides a measurement."""
    text = json.dumps(facts, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
