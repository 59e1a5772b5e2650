"""HLLM as in the paper, on EB-NeRD: one Llama 3.2 1B encodes articles, another one users.

Source: PerSRec (arXiv 2601.03479), its experiments with HLLM (arXiv 2409.12740): users with 512
clicks or more, texts of title, subtitle and topics cut to 256 tokens, learning rate 1e-4, cosine
schedule with 15 % warmup, 2 users per device. Both towers are trained. The last click of a user
is the test, the one before it validation.
Data: as `ebnerd.py`. Weights: a folder `Llama-3.2-1B` in the Hugging Face format (docs/hllm.md).
Layout: 4 x (100 items + 4 tokens) + a recent window of up to 100.
Argument: `compressed` (default), `full` or `recent`.
Hardware: 8 accelerators of 80 GB, over which parameters and AdamW's moments are split
(`mesh.fsdp`). Cost: `--config.train.dry_run=True` prints what a step needs.
Quality: not measured, it has never been trained.
Command:

    python train.py --config=configs/hllm_llama32_1b_ebnerd.py --workdir=runs/ebnerd_hllm \
        --config.data.path=ebnerd_large --config.model.texts.model=Llama-3.2-1B \
        --config.model.texts.user_model=Llama-3.2-1B
"""

from jaxrec.config import Config, recipe_argument

ARGUMENTS = ("compressed", "full", "recent")
WARMUP = 0.15  # of the steps


def get_config(mode: str = "compressed") -> Config:
    config = Config()
    config.data.dataset = "ebnerd"
    config.data.duplicates = "drop"
    config.data.min_item_events = 1
    config.data.min_user_events = 512
    config.layout.mode = recipe_argument(mode, ARGUMENTS)
    config.layout.segment_size = 100
    config.layout.tokens = 4
    config.layout.max_segments = 4
    hllm(config, steps=14_000)  # five times all users
    config.model.texts.fields = ("title", "subtitle", "topics")
    return config


def hllm(config: Config, steps: int) -> None:
    """Both towers and how they are trained."""
    model, texts, train = config.model, config.model.texts, config.train
    model.backbone = "llama"
    model.width = model.item_width = 2048
    model.layers = 16
    model.heads = 32
    model.dropout = model.embed_dropout = 0.0
    model.llama.kv_heads = 8
    model.llama.head_width = 64
    model.llama.ffn_width = 8192
    model.llama.rope_theta = 500_000.0
    model.llama.rope_scaling = "llama3"
    model.llama.rope_factor = 32.0
    model.dtype = "bfloat16"
    model.remat = True
    texts.model = texts.user_model = "Llama-3.2-1B"
    texts.train = "full"
    texts.pooling = "token"
    texts.max_tokens = 256
    texts.standardize = False
    config.loss.kind = "sampled_softmax"
    config.loss.similarity = "cosine"  # with a learned scale
    config.loss.negatives = 512
    config.loss.sampling = "uniform"
    train.batch_size = 16
    train.learning_rate = 1e-4
    train.schedule = "cosine"
    train.final_lr_fraction = 0.0
    train.steps = steps
    train.warmup = int(WARMUP * steps)
    train.weight_decay = 0.01
    train.metric = "ndcg@200"
    train.patience = 10
    config.eval.batch_size = 64
    config.mesh.fsdp = 8
