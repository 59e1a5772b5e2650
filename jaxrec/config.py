"""The typed configuration of a run: plain dataclasses, checked by `validate`.

Files in `configs/` return a `Config`; `--config.train.steps=100` overrides a field. Every
error names the key, the value found and what is allowed.
"""

import dataclasses
import hashlib
import json
import math
import re
import zoneinfo
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
    dataset: str = "completejourney"
    variant: str = ""  # which release or part of the data set, see its reader
    path: str = ""  # files of events: a file, a glob, or the folder a reader knows
    items_path: str = ""  # files of items with texts (table, amazon_reviews)
    user_column: str = "user_id"
    item_column: str = "item_id"
    time_column: str = "timestamp"
    event_column: str = ""  # table: type of an event (view, buy, ...); empty: none
    text_columns: tuple[str, ...] = ()
    time_unit: str = "s"  # table: what number times count since 1970: s | ms | us | ns
    time_zone: str = ""  # table: where times without a zone are from; empty: UTC
    incomplete: str = "refuse"  # rows without user, item or time: refuse | drop
    event_types: tuple[str, ...] = ()  # types of events that are kept; empty: all
    repeats: str = "keep"  # item again: keep | consecutive (drop right after itself) | first
    min_item_events: int = 20  # items with fewer events are dropped (before users)
    min_user_events: int = 5  # users with fewer remaining events are dropped
    max_user_events: int = 0  # users with more remaining events are dropped; 0: no limit
    core: bool = False  # repeat both filters until nothing changes (k-core)
    duplicates: str = "keep"  # keep | drop (identical user, item, timestamp rows)
    split: str = "last"  # last: leave the last q events out | time: global temporal split
    holdout: int = 1  # q events test, the q before validation (split=last)
    validation_time: float = 0.8  # quantile of event times where validation starts (split=time)
    test_time: float = 0.9  # quantile where test starts (split=time)
    append: tuple[str, ...] = ()  # later events, added to what is prepared; each like `path`
    cache_dir: str = ""  # prepared data; empty: <workdir>/data
    seed: int = 0  # order inside baskets, synthetic generator
    prepare_workers: int = 2  # threads that prepare; the result is the same for any number
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
class LlamaConfig:
    kv_heads: int = 0  # heads of keys and values (grouped queries); 0: model.heads
    head_width: int = 0  # 0: model.width / model.heads
    ffn_width: int = 0  # 0: 8/3 of model.width, rounded up to a multiple of 8
    norm_eps: float = 1e-5
    rope_theta: float = 10000.0
    rope_scaling: str = "none"  # none | linear | llama3
    rope_factor: float = 8.0  # linear, llama3
    rope_low: float = 1.0  # llama3: turns in rope_length below which a rate is divided by factor
    rope_high: float = 4.0  # llama3: turns above which it is left alone
    rope_length: int = 8192  # llama3: context of the original model, positions
    time_bias: bool = False  # log-bucketed time difference, added to the attention logits
    lora_rank: int = 0  # adapters on every projection; 0: none
    lora_alpha: float = 16.0  # adapters count alpha / rank


@dataclasses.dataclass
class TextsConfig:
    """The item tower of HLLM: items are what a language model makes of their texts (`hllm`)."""

    model: str = ""  # Hugging Face folder of the item tower; empty: items are learned vectors
    fields: tuple[str, ...] = ()  # text columns, in this order; empty: all
    prompt: str = "Compress the following sentence into embedding: "
    # of the words' hidden states; token: that of a learned one behind them; empty: token where the
    # tower is trained, else mean
    pooling: str = ""  # mean | token | empty
    longest: int = 256  # words; longer texts are cut
    rows: int = 8  # rows of packed texts that a device encodes at once
    standardize: bool = True  # vectors get mean 0 and spread 1 per dimension, by those at the start
    # frozen: the tower is read once; full: trained with the rest; lora: adapters of it are trained
    train: str = "frozen"
    lora_rank: int = 8  # of the item tower's adapters
    lora_alpha: float = 16.0  # adapters count alpha / rank
    cache_dir: str = ""  # vectors of texts; empty: <workdir>/item_vectors
    user_model: str = ""  # Hugging Face folder that a llama encoder starts from; empty: at random

    @property
    def pool(self) -> str:
        """`pooling`, said."""
        return self.pooling or ("mean" if self.train == "frozen" else "token")


@dataclasses.dataclass
class ModelConfig:
    backbone: str = "hstu"  # hstu | sasrec | llama
    width: int = 64
    item_width: int = 0  # 0: width; otherwise items are projected to width
    # catalogs whose table does not fit: items are sums of two rows that they share (`nn.item_rows`)
    item_hash: str = "none"  # none | quotient | hash
    item_rows: int = 0  # m. quotient: a table of m + items / m rows; hash: of m rows
    layers: int = 4
    heads: int = 4
    dropout: float = 0.2  # on block outputs
    embed_dropout: float = 0.2  # on the encoder's input
    dtype: str = "float32"  # compute type: float32 | bfloat16; parameters are float32
    attention: str = "blocked"  # blocked | dense
    remat: bool = False  # recompute blocks in the backward pass
    remat_keep: str = "nothing"  # of a block: nothing | products (of weights: less to recompute)
    request_time: bool = False  # queries know the time of the event they predict
    # what a state keeps of a token: K and V of every layer, or its output alone, from which every
    # layer makes them again (2 x layers times smaller; segments are then computed in turn)
    state: str = "kv"  # kv | embedding
    # half-lives (events; 0: never forgotten) of the counts of own items that add to scores
    repeat_half_lives: tuple[float, ...] = ()
    # the same in seconds (0.1: only what has the newest event's time, the basket at hand)
    repeat_half_times: tuple[float, ...] = ()
    hstu: HSTUConfig = dataclasses.field(default_factory=HSTUConfig)
    sasrec: SASRecConfig = dataclasses.field(default_factory=SASRecConfig)
    llama: LlamaConfig = dataclasses.field(default_factory=LlamaConfig)
    texts: TextsConfig = dataclasses.field(default_factory=TextsConfig)

    @property
    def head_width(self) -> int:
        """H, dimensions of a head."""
        own = self.llama.head_width if self.backbone == "llama" else 0
        return own or self.width // self.heads

    @property
    def kv_heads(self) -> int:
        """Heads of keys and values: what a state stores."""
        own = self.llama.kv_heads if self.backbone == "llama" else 0
        return own or self.heads

    @property
    def ffn_width(self) -> int:
        """Hidden width of Llama's feed-forward network."""
        return self.llama.ffn_width or -(-8 * self.width // 24) * 8


@dataclasses.dataclass
class LossConfig:
    kind: str = "softmax"  # softmax | sampled_softmax | bce | gbce
    similarity: str = "dot"  # dot | cosine
    temperature: float = 0.0  # cosine logits are divided by it; 0: learned scale <= 100
    negatives: int = 1024  # shared by the global batch (all kinds but softmax)
    sampling: str = "popularity"  # uniform | popularity
    log_q: bool = True  # sampled softmax: logits are corrected by how often a negative is drawn
    negative_groups: int = 1  # groups of a batch's users that each draw negatives of their own
    false_negative: float = 0.99  # negatives closer (cosine) to the positive are masked
    gbce_t: float = 0.75  # calibration of gBCE
    token_weight: float = 1.0  # weight of the last token's prediction; 0: off
    # compressed layouts: weight of a second view that sees the items behind the tokens too, its
    # own loss and the pull of queries towards its; more than doubles a step's work; 0: off
    consistency: float = 0.0
    chunk: int = 1024  # positions per chunk of the full softmax


@dataclasses.dataclass
class TrainConfig:
    steps: int = 2000
    batch_size: int = 16
    accumulate: int = 1  # parts of a batch computed one after the other (less memory)
    learning_rate: float = 1e-3
    schedule: str = "cosine"  # cosine | linear | constant
    warmup: int = 100  # steps
    final_rate: float = 0.05  # of learning_rate, at the end of the schedule
    weight_decay: float = 0.0
    clip: float = 1.0  # global gradient norm; 0: off
    # regular expressions of parameter paths that training leaves as they are
    frozen: tuple[str, ...] = ()
    ema: float = 0.0  # decay of averaged parameters used for evaluation; 0: off
    vary_recent: bool = True  # recent length and number of segments vary per example
    vary_segments: bool = False  # segments of half of the examples are cut short, to n / 2 at least
    item_dropout: float = 0.0  # probability of dropping an input item
    # of item tables. adamw: the whole table in every step; adagrad, adam: only the rows of the
    # batch and its negatives (row-wise Adagrad, lazy Adam), whatever the size of the catalog
    table_update: str = "adamw"
    log_every: int = 20
    eval_every: int = 500
    checkpoint_every: int = 200
    keep: int = 2  # latest checkpoints kept beside the best
    patience: int = 0  # evaluations without gain before stopping; 0: off
    metric: str = "ndcg@10"  # on validation users, selects the best checkpoint
    validation_users: int = 500  # 0: all
    dry_run: bool = False  # compile the step, print what it needs, exit
    profile_steps: str = ""  # A:B writes a profiler trace of steps A+1 to B to <workdir>/profile
    # go on with a run whose data got later files (data.append); its new items get new rows
    continue_on_new_data: bool = False
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
    fsdp: int = 1  # devices along large dense parameters
    model: int = 1  # devices along the rows of item tables


@dataclasses.dataclass
class ServingConfig:
    """What a new store of user states is made with (docs/serving.md)."""

    form: str = "float32"  # of the tokens' vectors: float32 | bfloat16 | int8
    keep_seen: int = 0  # newest distinct items that are remembered per user
    num_shards: int = 8


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
    serving: ServingConfig = dataclasses.field(default_factory=ServingConfig)


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
    "serving.form": ("float32", "bfloat16", "int8"),
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
    "model.texts.longest": (1, None),
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
    "train.accumulate": (1, None),
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
        if below or above or not -math.inf < value < math.inf:
            raise ConfigError(
                f"{key}={value!r}: allowed is {low} to {'any' if high is None else high}"
            )
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
    if config.train.batch_size % config.train.accumulate:
        raise ConfigError(
            f"train.accumulate={config.train.accumulate}: must divide "
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
    groups, rows = config.loss.negative_groups, config.train.batch_size // config.train.accumulate
    if rows % groups:
        raise ConfigError(
            f"loss.negative_groups={groups}: must divide "
            f"train.batch_size / train.accumulate = {rows}"
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


def frozen(config: Config) -> tuple[str, ...]:
    """Patterns of the parameters that training leaves alone: train.frozen, what adapters adapt."""
    patterns = config.train.frozen
    if config.model.texts.model:  # what the item tower makes, and its scale
        patterns += ("^item_(embedding|mean|scale)$",)
    if config.model.texts.train == "lora":
        patterns += (r"^item_tower/decoder/(?!.*/lora_[ab]$)",)
    if config.model.backbone == "llama" and config.model.llama.lora_rank:
        patterns += (r"^compressor/encoder/layers/\w+/kernel$",)
    return patterns


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


NEEDS_PATH = ("merrec", "ebnerd", "amazon_reviews", "kuairand", "yambda", "table")


def _check_data(data: DataConfig) -> None:
    """Raises ConfigError where keys of `data` do not fit together."""
    if data.dataset in NEEDS_PATH and not data.path:
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
