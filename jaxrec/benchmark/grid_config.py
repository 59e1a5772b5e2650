"""What `python -m jaxrec.benchmark` measures: a file's `get_config()` returns a `GridConfig`."""

import ast
import dataclasses
import hashlib
import importlib.util
import json
import pathlib
from collections.abc import Sequence
from typing import Any

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
    # looking up a bias for every pair would slow full history most: measured without
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
    """shapes: (history, segments): a history of so many events in equal segments, the last of
    them the recent window, the others compressed to `tokens` each."""

    shapes: tuple[tuple[int, int], ...] = ((512, 4),)
    tokens: tuple[int, ...] = (4,)
    methods: tuple[str, ...] = METHODS
    batches: tuple[int, ...] = (1,)  # users of a request: sizes that serving compiles
    most_events: int = 32768  # batch x history; larger batches of longer histories are left out
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
    """Raises ConfigError naming the key, what was found and what is allowed."""
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
        found = getattr(config, name)
        if not found or min(found) < 1:
            raise ConfigError(f"{name}={found!r}: positive integers are needed")
    if config.model.backbone not in ("hstu", "sasrec"):
        raise ConfigError(f"model.backbone={config.model.backbone!r}: allowed are hstu, sasrec")
    if config.model.state != "kv":
        raise ConfigError("model.state='embedding': method compressed_embedding measures it")
    for name in ("rounds", "train_rounds"):
        if getattr(config, name) < 3:
            raise ConfigError(f"{name}={getattr(config, name)}: 3 at least, medians need them")
    return config


def load(text: str, overrides: Sequence[str] = ()) -> GridConfig:
    """FILE.py[:argument] and `--config.key=value` -> a checked configuration.

    Raises ConfigError when the file, its function or a key is missing.
    """
    file, _, argument = text.partition(":")
    path = pathlib.Path(file)
    if not path.is_file():
        raise ConfigError(f"--config={file}: no such file; see configs/bench_*.py")
    spec: Any = importlib.util.spec_from_file_location("bench_config", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    make = getattr(module, "get_config", None)
    config = None if make is None else make(argument) if argument else make()
    if not isinstance(config, GridConfig):
        raise ConfigError(f"--config={file}: needs a function get_config() of a GridConfig")
    for override in overrides:
        _override(config, override)
    return validate(config)


def _override(config: Any, text: str) -> None:
    name, equals, value = text.removeprefix("--config.").partition("=")
    if not text.startswith("--config.") or not equals:
        raise ConfigError(f"unexpected argument {text!r}: overrides are --config.key=value")
    *groups, last = name.split(".")
    for part in groups:
        config = getattr(config, part, None)
    known = [f.name for f in dataclasses.fields(config)] if dataclasses.is_dataclass(config) else []
    if last not in known:
        raise ConfigError(f"unknown config key {name}: known are {', '.join(known) or 'none here'}")
    old = getattr(config, last)
    try:
        new = value if isinstance(old, str) else ast.literal_eval(value)
    except (ValueError, SyntaxError):
        raise ConfigError(f"--config.{name}={value}: not a {type(old).__name__}") from None
    if isinstance(old, float) and type(new) is int:
        new = float(new)
    if type(new) is not type(old):
        raise ConfigError(f"--config.{name}={value}: a {type(old).__name__} is needed")
    setattr(config, last, new)


def key_of(*parts: Any) -> str:
    """Hash of what decides a measurement."""
    text = json.dumps(parts, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
