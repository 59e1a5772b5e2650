"""The Llama decoder (arXiv 2302.13971): RMSNorm, rotary positions, grouped queries, SwiGLU.

`decoder_layer` is the layer of two modules: `LlamaBlock`, a backbone over items (Llama-ID and
the user tower of HLLM), and `jaxrec.nn.text_model.TextDecoder`, the item tower over texts.

Rotary positions and compressed tokens: keys are rotated by the offset *inside their segment*
before they are stored, so a stored key never depends on what came before or will come after
it and stays valid for ever. Inside a segment attention is Llama's; how many segments ago a token
was made is a learned bias added at attention time (`nn.bias`), the same for every user.

Parameters are float32; products are computed in `x.dtype`, normalisation and angles in float32.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from jaxrec.config import LlamaConfig, ModelConfig
from jaxrec.layout import SegmentLayout
from jaxrec.nn.attention import Bias, Cached, attend
from jaxrec.nn.stack import Block, KeysValues, read_by
from jaxrec.types import KV, Array, Params, Times, TokenOutputs, TokenState

ADAPTERS = ("lora_a", "lora_b")  # names of an adapter's matrices


class Rotation(NamedTuple):
    """cos and sin of the angles, float32 [B|1, T, 1, H / 2]."""

    cos: jax.Array
    sin: jax.Array


class TurnedOutputs(NamedTuple):
    """Outputs of earlier tokens and the angles of their positions."""

    tokens: TokenOutputs
    turn: Rotation


class RMSNorm(nn.Module):
    """x / rms(x) * scale over the last axis, computed in float32 or wider (arXiv 1910.07467)."""

    eps: float

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[..., D] -> [..., D]."""
        scale = self.param("scale", nn.initializers.ones, (x.shape[-1],))
        y = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        y = y * jax.lax.rsqrt(jnp.square(y).mean(-1, keepdims=True) + self.eps)
        return (y * scale.reshape((1,) * (x.ndim - 1) + (-1,))).astype(x.dtype)


def frequencies(config: LlamaConfig, head_width: int) -> np.ndarray:
    """float64 [H / 2] radians per position of every pair of dimensions.

    theta^(-2 i / H) (RoFormer, arXiv 2104.09864 §3.2.2). With `rope_scaling` llama3, wavelengths
    beyond `rope_length / rope_low` positions turn `rope_factor` times slower, those below
    `rope_length / rope_high` are left, and between them the two are blended (Llama 3.1).
    """
    rates = config.rope_theta ** (-np.arange(0, head_width, 2, dtype=np.float64) / head_width)
    if config.rope_scaling == "none":
        return rates
    if config.rope_scaling == "linear":
        return rates / config.rope_factor
    turns = config.rope_length * rates / (2 * np.pi)  # in the original context
    share = (turns - config.rope_low) / (config.rope_high - config.rope_low)
    share = np.clip(share, 0.0, 1.0)  # of the unscaled rate
    return share * rates + (1 - share) * rates / config.rope_factor


def rotation(positions: Array, rates: np.ndarray, dtype: DTypeLike = jnp.float32) -> Rotation:
    """Angles of int positions [T] or [B, T]; dtype: float32, or float64 where that is computed."""
    angles = jnp.asarray(positions).astype(dtype)[..., None] * jnp.asarray(rates, dtype).reshape(
        (1,) * np.ndim(positions) + (-1,)
    )
    if angles.ndim == 2:
        angles = angles[None]
    return Rotation(jnp.cos(angles)[:, :, None], jnp.sin(angles)[:, :, None])


def rotate(x: jax.Array, turn: Rotation) -> jax.Array:
    """Turned x [B, T, N, H]; dimension i is paired with i + H / 2, as in published weights."""
    first, second = jnp.split(x.astype(turn.cos.dtype), 2, axis=-1)
    turned = (first * turn.cos - second * turn.sin, second * turn.cos + first * turn.sin)
    return jnp.concatenate(turned, axis=-1).astype(x.dtype)


class Projection(nn.Module):
    """x W, with a low-rank adapter x A B alpha / r where `rank` is set (LoRA, arXiv 2106.09685).

    B starts at zero: the adapted layer starts as the layer itself.
    """

    size: int
    rank: int = 0
    alpha: float = 1.0

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[..., D] -> [..., size]."""
        # Llama's initializer_range
        init = nn.initializers.normal(0.02)
        kernel = self.param("kernel", init, (x.shape[-1], self.size))
        if self.rank:  # adapters are trained instead of what they adapt
            kernel = jax.lax.stop_gradient(kernel)
        y = x @ kernel.astype(x.dtype)
        if self.rank:
            spread = nn.initializers.normal(1 / math.sqrt(x.shape[-1]))
            down = self.param(ADAPTERS[0], spread, (x.shape[-1], self.rank))
            up = self.param(ADAPTERS[1], nn.initializers.zeros, (self.rank, self.size))
            y = y + (x @ down.astype(x.dtype)) @ up.astype(x.dtype) * (self.alpha / self.rank)
        return y


def without_adapters(params: Mapping[str, Any], config: LlamaConfig) -> Params:
    """Parameters of the same function without adapters: each kernel plus what adapts it."""
    if ADAPTERS[0] in params:
        change = jnp.matmul(*(params[name] for name in ADAPTERS)) * (
            config.lora_alpha / config.lora_rank
        )
        return {"kernel": params["kernel"] + change}
    return {
        name: without_adapters(value, config) if isinstance(value, Mapping) else value
        for name, value in params.items()
    }


def decoder_layer(
    config: ModelConfig,
    x: jax.Array,
    turn: Rotation,
    layout: SegmentLayout,
    valid: jax.Array,
    *,
    bias: Bias | None = None,
    cached: Cached | None = None,
    outputs: TurnedOutputs | None = None,
    drop: Callable[[jax.Array], jax.Array] = lambda y: y,
    keys_only: bool = False,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """One decoder layer inside a compact module: (y [B, T, D], k, v [B, T, kv heads, H]).

    k is rotated: it can be stored. cached: rotated K/V of `kv_heads` heads, as returned here;
    or outputs: earlier tokens as this layer's own input. keys_only: y is x.
    """
    llama, heads, kv_heads = config.llama, config.heads, config.kv_heads
    shape = (*x.shape[:2], -1, config.head_width)

    def repeat(y: Array) -> Array:
        """Every key/value head serves `heads / kv_heads` query heads that stand together."""
        return y if heads == kv_heads else jnp.repeat(y, heads // kv_heads, axis=2)

    norm = RMSNorm(llama.norm_eps, name="attention_norm")
    key, value = (
        Projection(kv_heads * config.head_width, llama.lora_rank, llama.lora_alpha, name=name)
        for name in ("key", "value")
    )

    def keys_values(y: jax.Array, turn: Rotation) -> KeysValues:
        split = (*y.shape[:2], -1, config.head_width)
        return rotate(key(y).reshape(split), turn), value(y).reshape(split)

    y = norm(x)
    q = rotate(_project(config, "query", y, heads * config.head_width).reshape(shape), turn)
    k, v = keys_values(y, turn)
    if keys_only:
        return x, k, v
    if outputs is not None:
        tokens = norm(jnp.asarray(outputs.tokens.outputs, x.dtype))
        cached = Cached(*keys_values(tokens, outputs.turn), outputs.tokens.valid)
    if cached is not None:
        cached = Cached(repeat(cached.k), repeat(cached.v), cached.valid)
    mixed = attend(
        q,
        repeat(k),
        repeat(v),
        layout,
        valid,
        kind="softmax",
        scale=config.head_width**-0.5,
        bias=bias,
        cached=cached,
        backend=config.attention,
    )
    mixed = read_by(config, layout, mixed.reshape(*x.shape[:2], -1))
    x = x + drop(_project(config, "out", mixed, config.width))
    return x + drop(_feed_forward(config, x)), k, v


def _feed_forward(config: ModelConfig, x: jax.Array) -> jax.Array:
    """SwiGLU (arXiv 2002.05202) of the normalised input, inside a compact module."""
    y = RMSNorm(config.llama.norm_eps, name="ffn_norm")(x)
    gate = nn.silu(_project(config, "gate", y, config.ffn_width))
    hidden = gate * _project(config, "up", y, config.ffn_width)
    return _project(config, "down", hidden, config.width)


def _project(config: ModelConfig, name: str, y: jax.Array, size: int) -> jax.Array:
    """`Projection` of this name, inside a compact module."""
    llama = config.llama
    return Projection(size, llama.lora_rank, llama.lora_alpha, name=name)(y)


class LlamaBlock(Block):
    """A decoder layer over items and compressed tokens (`model.backbone=llama`)."""

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        past: TokenState | None,
        valid: jax.Array,
        times: Times,
    ) -> tuple[jax.Array, KeysValues]:
        """See `Block`."""
        config = self.config
        wide = jnp.promote_types(x.dtype, jnp.float32)
        rates = frequencies(config.llama, config.head_width)
        cached, outputs = None, None
        if isinstance(past, KV):
            cached = Cached(past.k, past.v, past.valid)
        elif past is not None:
            outputs = TurnedOutputs(past, rotation(self._cached_offset(), rates, wide))
        offset = self.layout.offset
        if self.keys_only:
            offset = self._cached_offset()[: x.shape[1]]
        y, k, v = decoder_layer(
            config,
            x,
            rotation(offset, rates, wide),
            self.layout,
            valid,
            bias=self.bias(False, config.llama.time_bias, times, past),
            cached=cached,
            outputs=outputs,
            drop=self.drop,
            keys_only=self.keys_only,
        )
        return y, (k, v) if self.keys_only else self.of_tokens(k, v)

    def _cached_offset(self) -> np.ndarray:
        """[C] offsets of the cached tokens: they stand behind the items of their segment."""
        layout = self.layout
        return self.base.segments[0][0] + layout.key_token_index[: layout.num_cached]

    @staticmethod
    def finish(config: ModelConfig, x: jax.Array) -> jax.Array:
        """The final norm."""
        return RMSNorm(config.llama.norm_eps, name="final_norm")(x)
