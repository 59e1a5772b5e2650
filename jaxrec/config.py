"""The typed configuration of a run: plain dataclasses, checked by `validate`.

Files in `configs/` return a `Config`; `--config.train.steps=100` overrides a field. Every
error names the key, the value found and what is allowed.
"""

import dataclasses
import hashlib
import json
from typing import Any


class ConfigError(ValueError):
    """A configuration value that cannot work: names key, value and what is allowed."""


@dataclasses.dataclass
class SyntheticConfig:
    """Generator of lifelong histories with planted structure (`data.datasets.synthetic`)."""

    users: int = 2000
    items: int = 2000
    events: int = 600  # mean events per user
    interests: int = 40  # item groups a user can have a taste for
    returns: float = 0.5  # probability that a late event returns to an early preference
    gap: int = 300  # events that separate an early preference from its return


@dataclasses.dataclass
class DataConfig:
    dataset: str = "completejourney"  # completejourney | movielens | table | synthetic
    variant: str = ""  # movielens: latest-small, 100k, 1m, 20m, 25m
    path: str = ""  # table: parquet/CSV file or glob; movielens: downloaded zip or its folder
    items_path: str = ""  # table: parquet/CSV of items, text columns below
    user_column: str = "user_id"
    item_column: str = "item_id"
    time_column: str = "timestamp"
    text_columns: tuple[str, ...] = ()
    min_item_events: int = 20  # items with fewer events are dropped (before users)
    min_user_events: int = 5  # users with fewer remaining events are dropped
    duplicates: str = "keep"  # keep | drop (identical user, item, timestamp rows)
    split: str = "last"  # last: leave the last q events out | time: global temporal split
    holdout: int = 1  # q events test, the q before validation (split=last)
    validation_time: float = 0.8  # quantile of event times where validation starts (split=time)
    test_time: float = 0.9  # quantile where test starts (split=time)
    cache_dir: str = ""  # prepared data; empty: <workdir>/data
    seed: int = 0  # order inside baskets, synthetic generator
    workers: int = 1  # loader threads; 0: none
    worker_processes: int = 0  # grain worker processes
    synthetic: SyntheticConfig = dataclasses.field(default_factory=SyntheticConfig)


@dataclasses.dataclass
class LayoutConfig:
    mode: str = "compressed"  # compressed | full (one segment, no tokens) | recent
    segment_size: int = 100  # n
    tokens: int = 4  # k
    max_segments: int = 4  # S
    recent_min: int = 1  # r_min; the window holds r_min + n - 1 items
    positions: str = "segment"  # segment | absolute

    @property
    def recent(self) -> int:
        """Capacity of the recent window, items."""
        return self.recent_min + self.segment_size - 1

    @property
    def history(self) -> int:
        """Items that the layout covers: segments and recent window."""
        return self.max_segments * self.segment_size + self.recent


@dataclasses.dataclass
class HSTUConfig:
    position_bias: bool = True  # relative position bias (segment age for tokens)
    time_bias: bool = True  # log-bucketed time difference
    normalizer: float = 0.0  # divisor of pointwise attention; 0: the layout's length
    activation: str = "silu"  # silu | none, on the u, v, q, k projection


@dataclasses.dataclass
class SASRecConfig:
    block: str = "modern"  # classic (post-norm, ReLU) | modern (pre-norm, SwiGLU, gated residual)
    ffn_width: int = 0  # 0: width (classic), 2 x width (modern)
    time_bias: bool = False  # log-bucketed time difference, added to the attention logits


@dataclasses.dataclass
class ModelConfig:
    backbone: str = "hstu"  # hstu | sasrec
    width: int = 64
    item_width: int = 0  # 0: width; otherwise items are projected to width
    layers: int = 4
    heads: int = 4
    dropout: float = 0.2  # on block outputs
    embed_dropout: float = 0.2  # on the encoder's input
    dtype: str = "float32"  # compute type: float32 | bfloat16; parameters are float32
    attention: str = "blocked"  # blocked | dense
    remat: bool = False  # recompute blocks in the backward pass
    request_time: bool = False  # queries know the time of the event they predict
    hstu: HSTUConfig = dataclasses.field(default_factory=HSTUConfig)
    sasrec: SASRecConfig = dataclasses.field(default_factory=SASRecConfig)


@dataclasses.dataclass
class LossConfig:
    kind: str = "softmax"  # softmax | sampled_softmax | bce | gbce
    similarity: str = "dot"  # dot | cosine
    temperature: float = 0.0  # cosine logits are divided by it; 0: learned scale <= 100
    negatives: int = 1024  # shared by the global batch (all kinds but softmax)
    sampling: str = "popularity"  # uniform | popularity, with logQ correction
    false_negative: float = 0.99  # negatives closer (cosine) to the positive are masked
    gbce_t: float = 0.75  # calibration of gBCE
    token_weight: float = 1.0  # weight of the last token's prediction; 0: off
    chunk: int = 1024  # positions per chunk of the full softmax


@dataclasses.dataclass
class TrainConfig:
    steps: int = 2000
    batch_size: int = 16
    learning_rate: float = 1e-3
    schedule: str = "cosine"  # cosine | linear | constant
    warmup: int = 100  # steps
    final_rate: float = 0.05  # of learning_rate, at the end of the schedule
    weight_decay: float = 0.0
    clip: float = 1.0  # global gradient norm; 0: off
    ema: float = 0.0  # decay of averaged parameters used for evaluation; 0: off
    vary_recent: bool = True  # recent length and number of segments vary per example
    item_dropout: float = 0.0  # probability of dropping an input item
    log_every: int = 20
    eval_every: int = 500
    checkpoint_every: int = 200
    keep: int = 2  # latest checkpoints kept beside the best
    patience: int = 0  # evaluations without gain before stopping; 0: off
    metric: str = "ndcg@10"  # on validation users, selects the best checkpoint
    validation_users: int = 500  # 0: all
    compilation_cache: str = ""  # folder of JAX's persistent compilation cache; empty: off


@dataclasses.dataclass
class EvalConfig:
    split: str = "test"  # test | validation
    # all, or names of evaluation rows; see `eval.py --help`
    mode: str = "all"
    batch_size: int = 32
    filter_seen: bool = False
    ks: tuple[int, ...] = (1, 5, 10, 50, 200)
    buckets: tuple[int, ...] = (100, 200, 500, 1000)  # edges of the history-length buckets
    bootstrap: int = 1000  # resamples of users
    chunk: int = 16384  # catalog items scored at once
    full_workdir: str = ""  # workdir of a full-history model for the savings table


@dataclasses.dataclass
class MeshConfig:
    data: int = 0  # devices along the batch; 0: all that are left
    model: int = 1  # devices along item tables


@dataclasses.dataclass
class Config:
    seed: int = 0
    data: DataConfig = dataclasses.field(default_factory=DataConfig)
    layout: LayoutConfig = dataclasses.field(default_factory=LayoutConfig)
    model: ModelConfig = dataclasses.field(default_factory=ModelConfig)
    loss: LossConfig = dataclasses.field(default_factory=LossConfig)
    train: TrainConfig = dataclasses.field(default_factory=TrainConfig)
    eval: EvalConfig = dataclasses.field(default_factory=EvalConfig)
    mesh: MeshConfig = dataclasses.field(default_factory=MeshConfig)


CHOICES: dict[str, tuple[str, ...]] = {
    "data.dataset": ("completejourney", "movielens", "table", "synthetic"),
    "data.duplicates": ("keep", "drop"),
    "data.split": ("last", "time"),
    "layout.mode": ("compressed", "full", "recent"),
    "layout.positions": ("segment", "absolute"),
    "model.backbone": ("hstu", "sasrec"),
    "model.dtype": ("float32", "bfloat16"),
    "model.attention": ("blocked", "dense"),
    "model.hstu.activation": ("silu", "none"),
    "model.sasrec.block": ("classic", "modern"),
    "loss.kind": ("softmax", "sampled_softmax", "bce", "gbce"),
    "loss.similarity": ("dot", "cosine"),
    "loss.sampling": ("uniform", "popularity"),
    "train.schedule": ("cosine", "linear", "constant"),
    "eval.split": ("test", "validation"),
}

# inclusive bounds; None: open
BOUNDS: dict[str, tuple[float | None, float | None]] = {
    "data.min_item_events": (1, None),
    "data.min_user_events": (1, None),
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
    "model.layers": (1, None),
    "model.heads": (1, None),
    "model.dropout": (0, 0.99),
    "model.embed_dropout": (0, 0.99),
    "model.hstu.normalizer": (0, None),
    "model.sasrec.ffn_width": (0, None),
    "loss.temperature": (0, None),
    "loss.negatives": (1, None),
    "loss.false_negative": (-1, 1),
    "loss.gbce_t": (0, 1),
    "loss.token_weight": (0, None),
    "loss.chunk": (1, None),
    "train.steps": (1, None),
    "train.batch_size": (1, None),
    "train.learning_rate": (0, None),
    "train.warmup": (0, None),
    "train.final_rate": (0, 1),
    "train.weight_decay": (0, None),
    "train.clip": (0, None),
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
    "mesh.model": (1, None),
}


def lookup(config: Any, key: str) -> Any:
    """The value behind a dotted key, `lookup(config, "model.hstu.normalizer")`."""
    for part in key.split("."):
        config = getattr(config, part)
    return config


def validate(config: Config) -> Config:
    """Returns `config` when every value can work; raises ConfigError otherwise."""
    _check_types(config, Config(), "")
    for key, allowed in CHOICES.items():
        value = lookup(config, key)
        if value not in allowed:
            raise ConfigError(f"{key}={value!r}: allowed are {', '.join(allowed)}")
    for key, (low, high) in BOUNDS.items():
        value = lookup(config, key)
        below, above = low is not None and value < low, high is not None and value > high
        if below or above or value != value:
            raise ConfigError(
                f"{key}={value!r}: allowed is {low} to {'any' if high is None else high}"
            )
    if config.model.width % config.model.heads:
        raise ConfigError(
            f"model.width={config.model.width}: must be a multiple of "
            f"model.heads={config.model.heads}"
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
    if config.data.dataset == "table" and not config.data.path:
        raise ConfigError("data.path='': data.dataset=table needs a parquet or CSV file")
    if not config.eval.ks or any(not isinstance(k, int) or k < 1 for k in config.eval.ks):
        raise ConfigError(f"eval.ks={config.eval.ks!r}: one or more positive integers are needed")
    if list(config.eval.buckets) != sorted(set(config.eval.buckets)):
        raise ConfigError(f"eval.buckets={config.eval.buckets!r}: edges must increase")
    metric, _, k = config.train.metric.partition("@")
    if metric not in ("recall", "ndcg", "mrr") or not k.isdigit() or int(k) < 1:
        raise ConfigError(
            f"train.metric={config.train.metric!r}: allowed is recall@K, ndcg@K or mrr@K"
        )
    return config


def _check_types(config: Any, default: Any, prefix: str) -> None:
    """Raises ConfigError where a value is not of its default's type (an int is a float)."""
    for field in dataclasses.fields(default):
        key, kind = f"{prefix}{field.name}", type(getattr(default, field.name))
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(kind):
            _check_types(value, getattr(default, field.name), f"{key}.")
        elif kind in (int, float):
            allowed, needed = (int, "an integer") if kind is int else (int | float, "a number")
            if isinstance(value, bool) or not isinstance(value, allowed):
                raise ConfigError(f"{key}={value!r}: {needed} is needed")
        elif not isinstance(value, kind):
            raise ConfigError(f"{key}={value!r}: a {kind.__name__} is needed")


def to_json(config: Any) -> str:
    """Canonical JSON of a config (or a part of it): sorted keys, two spaces."""
    return json.dumps(dataclasses.asdict(config), indent=2, sort_keys=True)


def from_json(text: str) -> Config:
    """The inverse of `to_json`; raises ConfigError on an unknown key or a section that is none."""
    try:
        values = json.loads(text)
    except json.JSONDecodeError as error:
        raise ConfigError(f"the config is no JSON: {error}") from error
    return _build(Config, values, "")


def _build(kind: Any, values: Any, prefix: str) -> Any:
    fields = {f.name: f for f in dataclasses.fields(kind)}
    if not isinstance(values, dict):
        name = prefix.rstrip(".") or "the config"
        raise ConfigError(f"{name}={values!r}: an object with keys {', '.join(fields)} is needed")
    unknown = sorted(set(values) - set(fields))
    if unknown:
        raise ConfigError(f"unknown config key {prefix}{unknown[0]}: known are {', '.join(fields)}")
    built = {}
    for name, value in values.items():
        default = fields[name].default_factory
        nested = default if dataclasses.is_dataclass(default) else None
        if nested is not None:
            value = _build(nested, value, f"{prefix}{name}.")
        built[name] = tuple(value) if isinstance(value, list) else value
    return kind(**built)


def digest(*parts: Any) -> str:
    """12 hex digits that identify config parts (dataclasses or JSON values)."""
    plain = [dataclasses.asdict(p) if dataclasses.is_dataclass(p) else p for p in parts]  # type: ignore[arg-type]
    text = json.dumps(plain, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]
