"""Keys of the loss and of training."""

import dataclasses

from jaxrec.config.option import Group, option

LOGGERS = ("auto", "tensorboard", "wandb", "mlflow")  # what train.loggers may name


@dataclasses.dataclass
class LossConfig(Group):
    """What training minimizes."""

    kind: str = option(
        "softmax",
        "Loss; softmax compares with the whole catalog, the others with sampled negatives.",
        choices=("softmax", "sampled_softmax", "bce", "gbce"),
    )
    similarity: str = option(
        "dot", "Score of a query and an item vector.", choices=("dot", "cosine")
    )
    temperature: float = option(
        0.0, "Divisor of cosine scores; 0: a learned scale of at most 100.", low=0
    )
    negatives: int = option(
        1024, "Negatives that the global batch shares (all kinds but softmax).", low=1
    )
    sampling: str = option(
        "popularity",
        "Distribution of negatives; popularity: training events of the item.",
        choices=("uniform", "popularity"),
    )
    log_q: bool = option(
        True, "Correct sampled-softmax logits by how often a negative is drawn (logQ)."
    )
    negative_groups: int = option(
        1, "Groups of a batch's users that each draw their own negatives; must divide it.", low=1
    )
    false_negative: float = option(
        0.99,
        "Negatives with a higher cosine to the positive are left out; 1: none.",
        low=-1,
        high=1,
    )
    gbce_t: float = option(0.75, "t, calibration of gBCE; 0 is BCE.", low=0, high=1)
    token_weight: float = option(
        1.0, "Weight of the next event's prediction by a segment's last token; 0: off.", low=0
    )
    consistency: float = option(
        0.0,
        "Weight of a second view that sees the items behind the tokens too: its loss and the "
        "distance to its queries; more than doubles a step; 0: off.",
        low=0,
    )
    chunk: int = option(1024, "Positions that the full softmax computes at once.", low=1)


@dataclasses.dataclass
class TrainConfig(Group):
    """Steps, optimizer, augmentation, checkpoints."""

    steps: int = option(2000, "Training steps, all together.", low=1)
    batch_size: int = option(16, "Users in a step, all devices together.", low=1)
    length_buckets: int = option(
        1,
        "Sizes of batches at most: users of similar length share a batch, short ones fill shorter "
        "rows; 1: every row has the whole layout. The step is compiled once for each.",
        low=1,
    )
    grad_accum_steps: int = option(
        1, "Parts of a batch that are computed in turn, to save memory; must divide it.", low=1
    )
    learning_rate: float = option(1e-3, "Peak learning rate.", low=0)
    schedule: str = option(
        "cosine",
        "Decay of the learning rate after the warmup.",
        choices=("cosine", "linear", "constant"),
    )
    warmup: int = option(100, "Steps in which the learning rate rises linearly from 0.", low=0)
    final_lr_fraction: float = option(
        0.05, "Learning rate at the end of the schedule, as a fraction of the peak.", low=0, high=1
    )
    weight_decay: float = option(0.0, "Decoupled weight decay of matrices and item vectors.", low=0)
    grad_clip_norm: float = option(
        1.0, "Largest global norm of gradients, which are scaled down to it; 0: off.", low=0
    )
    init_from: str = option(
        "",
        "Folder of a run on the same data whose parameters this run begins with, such as one with "
        "full history; what it does not have begins anew.",
    )
    frozen: tuple[str, ...] = option(
        (), "Regular expressions of parameter paths that are not trained."
    )
    ema: float = option(
        0.0,
        "Decay of averaged parameters, which evaluation then uses; 0: off.",
        low=0,
        high=0.999999,
    )
    vary_recent: bool = option(
        True, "Draw the recent window's length and the number of segments for every example."
    )
    vary_segments: bool = option(
        False, "Cut the segments of half of the examples short, down to n / 2 items."
    )
    item_dropout: float = option(
        0.0, "Probability that an input item is dropped.", low=0, high=0.99
    )
    table_update: str = option(
        "adamw",
        "Optimizer of item tables; adagrad (row-wise), adam (lazy): only rows that a step touches.",
        choices=("adamw", "adagrad", "adam"),
    )
    log_every: int = option(20, "Steps between log lines.", low=1)
    loggers: str = option(
        "auto",
        "Where metrics go besides metrics.jsonl, comma-separated: tensorboard, wandb, mlflow; "
        "auto: TensorBoard where tensorboardX is installed; empty: nowhere.",
    )
    eval_every: int = option(500, "Steps between validations.", low=1)
    checkpoint_every: int = option(200, "Steps between checkpoints.", low=1)
    keep: int = option(2, "Newest checkpoints that are kept beside the best one.", low=1)
    patience: int = option(
        0, "Validations without improvement before training stops; 0: never.", low=0
    )
    metric: str = option(
        "ndcg@10", "Validation metric of the best checkpoint: recall@K, ndcg@K or mrr@K."
    )
    validation_users: int = option(500, "Users of a validation, drawn once; 0: all.", low=0)
    dry_run: bool = option(
        False, "Compile the training step, print its memory and compute, and exit."
    )
    profile_steps: str = option(
        "", "A:B writes a profiler trace of steps A+1 to B to <workdir>/profile; empty: off."
    )
    continue_on_new_data: bool = option(
        False, "Continue a run whose data has later files (data.append); new items get new rows."
    )
    compilation_cache: str = option(
        "",
        "Folder of compiled programs, which later starts read; empty: jaxrec/compiled in "
        "$XDG_CACHE_HOME or ~/.cache ($JAX_COMPILATION_CACHE_DIR wins); off: none are kept.",
    )
