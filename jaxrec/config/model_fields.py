"""Keys of the model: its size, its backbone and where item vectors come from."""

import dataclasses

from jaxrec.config.option import Group, option


@dataclasses.dataclass
class HSTUConfig(Group):
    """The HSTU backbone (model.backbone=hstu)."""

    position_bias: bool = option(
        True, "Relative position bias; for compressed tokens by the age of their segment."
    )
    time_bias: bool = option(True, "Bias by log-bucketed time difference.")
    normalizer: float = option(
        0.0, "Divisor of the pointwise attention; 0: length of the layout, positions.", low=0
    )
    activation: str = option(
        "silu", "Activation of the u, v, q, k projection.", choices=("silu", "none")
    )


@dataclasses.dataclass
class SASRecConfig(Group):
    """The SASRec backbone (model.backbone=sasrec)."""

    block: str = option(
        "modern",
        "classic: post-norm, ReLU, as in the paper; modern: pre-norm, SwiGLU, gated residual.",
        choices=("classic", "modern"),
    )
    ffn_width: int = option(
        0, "Width of the feed-forward network; 0: width (classic) or 2 x width (modern).", low=0
    )
    position_bias: bool = option(
        False, "Relative position bias of the attention logits, as HSTU has it."
    )
    time_bias: bool = option(
        False, "Bias by log-bucketed time difference, added to the attention logits."
    )


@dataclasses.dataclass
class LlamaConfig(Group):
    """The Llama backbone (model.backbone=llama)."""

    kv_heads: int = option(0, "Heads of keys and values (grouped queries); 0: model.heads.", low=0)
    head_width: int = option(0, "H, width of a head; 0: model.width / model.heads.", low=0)
    ffn_width: int = option(
        0,
        "Width of the feed-forward network; 0: 8/3 of model.width, rounded up to a multiple of 8.",
        low=0,
    )
    norm_eps: float = option(1e-5, "Epsilon of RMSNorm.", low=0, high=1)
    rope_theta: float = option(10000.0, "Base of the rotary frequencies.", low=1)
    rope_scaling: str = option(
        "none", "Scaling of the rotary frequencies.", choices=("none", "linear", "llama3")
    )
    rope_factor: float = option(8.0, "Divisor of the scaled frequencies (linear, llama3).", low=1)
    rope_low: float = option(
        1.0,
        "Frequencies with fewer turns in rope_length are divided by rope_factor (llama3).",
        low=0,
    )
    rope_high: float = option(
        4.0, "Frequencies with more turns in rope_length are left alone (llama3).", low=0
    )
    rope_length: int = option(8192, "Context of the original model, positions (llama3).", low=1)
    time_bias: bool = option(
        False, "Bias by log-bucketed time difference, added to the attention logits."
    )
    lora_rank: int = option(
        0,
        "Rank of LoRA adapters, which are trained instead of the matrices; 0: no adapters.",
        low=0,
    )
    lora_alpha: float = option(16.0, "Adapters are scaled by lora_alpha / lora_rank.", low=0)


@dataclasses.dataclass
class TextsConfig(Group):
    """Item vectors from texts by a language model, the item tower of HLLM (docs/hllm.md)."""

    model: str = option(
        "", "Folder of the item tower in the Hugging Face format; empty: learned item vectors."
    )
    fields: tuple[str, ...] = option((), "Text columns of an item, in this order; empty: all.")
    prompt: str = option(
        "Compress the following sentence into embedding: ", "Text in front of every item's text."
    )
    pooling: str = option(
        "",
        "mean of the tokens' outputs, or output of a learned last token; empty: mean if frozen.",
        choices=("mean", "token", ""),
    )
    max_tokens: int = option(256, "Tokens after which a text is cut.", low=1)
    rows: int = option(8, "Rows of packed texts that a device encodes at once.", low=1)
    standardize: bool = option(
        True,
        "Shift and scale every dimension to mean 0 and spread 1 over the catalog at the start.",
    )
    train: str = option(
        "frozen",
        "frozen: items are encoded once; full: the tower is trained too; lora: adapters of it are.",
        choices=("frozen", "full", "lora"),
    )
    lora_rank: int = option(8, "Rank of the item tower's adapters (train=lora).", low=1)
    lora_alpha: float = option(16.0, "Adapters are scaled by lora_alpha / lora_rank.", low=0)
    cache_dir: str = option(
        "", "Folder of the encoded texts, can be shared; empty: <workdir>/item_vectors."
    )
    user_model: str = option(
        "", "Hugging Face folder that a llama backbone starts from; empty: random parameters."
    )

    @property
    def pool(self) -> str:
        """`pooling` with its default filled in."""
        return self.pooling or ("mean" if self.train == "frozen" else "token")


@dataclasses.dataclass
class ModelConfig(Group):
    """The encoder of histories, its item vectors and its user states."""

    backbone: str = option(
        "hstu", "Architecture of the encoder.", choices=("hstu", "sasrec", "llama")
    )
    width: int = option(64, "D, width of the encoder.", low=1, high=1 << 20)
    item_width: int = option(
        0, "Width of item vectors, projected to model.width; 0: model.width.", low=0
    )
    item_hash: str = option(
        "none",
        "For catalogs whose table does not fit: an item is the sum of two rows that items share.",
        choices=("none", "quotient", "hash"),
    )
    item_rows: int = option(
        0,
        "m, shared rows: m + items / m rows in the table (quotient), or m (hash); 0: none shared.",
        low=0,
        high=2**31 - 2,
    )
    item_bias: bool = option(
        False, "Add a learned bias per item to scores; it starts at the item's log-popularity."
    )
    layers: int = option(4, "L, blocks of the encoder.", low=1, high=1024)
    heads: int = option(4, "N, attention heads; must divide model.width.", low=1)
    dropout: float = option(0.2, "Dropout of block outputs, probability.", low=0, high=0.99)
    embed_scale: bool = option(
        True,
        "Multiply learned item vectors by the square root of model.width where they enter the "
        "encoder; vectors of texts are never scaled.",
    )
    embed_dropout: float = option(
        0.2, "Dropout of the encoder's input, probability.", low=0, high=0.99
    )
    dtype: str = option(
        "float32", "Type of computation; parameters are float32.", choices=("float32", "bfloat16")
    )
    attention: str = option(
        "blocked",
        "blocked: computes only visible blocks of the layout; fused: the same in kernels on TPU "
        "and Hopper GPUs, blocked elsewhere; dense: all pairs, masked.",
        choices=("blocked", "fused", "dense"),
    )
    remat: bool = option(False, "Recompute blocks in the backward pass: less memory, more compute.")
    remat_keep: str = option(
        "nothing",
        "What model.remat keeps of a block; products: of weight matrices, less to recompute.",
        choices=("nothing", "products"),
    )
    request_time: bool = option(False, "Queries know the time of the event that they predict.")
    state: str = option(
        "kv",
        "What a state keeps of a token; embedding: 2 x layers smaller, segments run in turn.",
        choices=("kv", "embedding"),
    )
    token_input: str = option(
        "learned",
        "What a compressed token starts from: a learned vector; pooled: with a learned softmax "
        "average of its segment's items; parts: the same, which begins at the token's part of the "
        "segment. Baselines: mean: with their plain mean, and it reads "
        "nothing more; constant: a learned vector, and it reads nothing.",
        choices=("learned", "pooled", "parts", "mean", "constant"),
    )
    token_distance: bool = option(
        False,
        "Bias by the events between a query and the part of its segment that a token stands for "
        "(token j of k: the j-th of k parts), added to the attention logits.",
    )
    repeat_half_lives: tuple[float, ...] = option(
        (),
        "Half-lives, in events, of the decayed counts of history items in scores; 0: no decay.",
    )
    repeat_half_times: tuple[float, ...] = option(
        (),
        "Half-lives of such counts in seconds; 0.1: only the newest event's time, the open basket.",
    )
    hstu: HSTUConfig = dataclasses.field(default_factory=HSTUConfig)
    sasrec: SASRecConfig = dataclasses.field(default_factory=SASRecConfig)
    llama: LlamaConfig = dataclasses.field(default_factory=LlamaConfig)
    texts: TextsConfig = dataclasses.field(default_factory=TextsConfig)

    @property
    def head_width(self) -> int:
        """H, dimensions of a head."""
        width = self.llama.head_width if self.backbone == "llama" else 0
        return width or self.width // self.heads

    @property
    def kv_heads(self) -> int:
        """Heads of keys and values: what a state stores."""
        heads = self.llama.kv_heads if self.backbone == "llama" else 0
        return heads or self.heads

    @property
    def ffn_width(self) -> int:
        """Hidden width of Llama's feed-forward network."""
        return self.llama.ffn_width or -(-8 * self.width // 24) * 8
