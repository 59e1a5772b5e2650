"""The typed configuration of a run: plain dataclasses, every field with its default."""

import dataclasses


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
    max_tokens: int = 256  # words; longer texts are cut
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
    # items have a score of their own beside the dot product, at first their log-popularity
    item_bias: bool = False
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
    grad_accum_steps: int = 1  # parts of a batch computed one after the other (less memory)
    learning_rate: float = 1e-3
    schedule: str = "cosine"  # cosine | linear | constant
    warmup: int = 100  # steps
    final_lr_fraction: float = 0.05  # of learning_rate, at the end of the schedule
    weight_decay: float = 0.0
    grad_clip_norm: float = 1.0  # global gradient norm; 0: off
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

    encoding: str = "float32"  # of the tokens' vectors: float32 | bfloat16 | int8
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
