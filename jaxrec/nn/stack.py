"""What every encoder shares: depth by scan, K/V of tokens in and out.

Encoder contract (DESIGN §2): `(x [B, T, D], layout, lengths [B, S], times, *, kv=None,
train) -> (y [B, T, D], kv)`; `kv` in holds the K/V of `layout.num_cached` earlier tokens,
`kv` out those of the layout's own tokens, [L, B, C, N, H].
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxrec.config import ModelConfig
from jaxrec.layout import SegmentLayout
from jaxrec.nn.attention import Cached
from jaxrec.nn.bias import BiasTables, RelativeBias
from jaxrec.types import KV, Times

UNROLL = 4  # layers per iteration of the scan over depth
# float64 (under jax.enable_x64) separates rounding from differences; no run can choose it
DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16, "float64": jnp.float64}


class Block(nn.Module):
    """One layer. Subclasses implement `__call__(x, cached, valid, times, ...)`."""

    config: ModelConfig
    base: SegmentLayout  # the model's layout: sizes of the bias tables
    layout: SegmentLayout  # of this forward
    train: bool

    @property
    def head_width(self) -> int:
        return self.config.width // self.config.heads

    def split_heads(self, x: jax.Array) -> jax.Array:
        return x.reshape(*x.shape[:-1], self.config.heads, self.head_width)

    def drop(self, x: jax.Array) -> jax.Array:
        return nn.Dropout(self.config.dropout, deterministic=not self.train)(x)

    def bias(
        self, distance: bool, time: bool, times: Times, cached_times: jax.Array | None
    ) -> RelativeBias | None:
        tables = BiasTables(self.base, self.config.heads, distance, time, name="bias")
        return tables(self.layout, times, cached_times)

    def tokens_of(self, k: jax.Array, v: jax.Array) -> tuple[jax.Array, jax.Array]:
        """K/V at the layout's token positions: what a user state keeps."""
        return k[:, self.layout.token_positions], v[:, self.layout.token_positions]


class Stack(nn.Module):
    """`config.layers` blocks under `nn.scan`, optionally rematerialised."""

    config: ModelConfig
    base: SegmentLayout
    block: type[Block]

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        layout: SegmentLayout,
        lengths: jax.Array,
        times: Times,
        *,
        kv: KV | None = None,
        train: bool = False,
    ) -> tuple[jax.Array, KV]:
        """See the module docstring; raises ValueError when `kv` does not fit the layout."""
        dtype = DTYPES[self.config.dtype]
        valid = jnp.asarray(layout.valid(lengths))
        if kv is None and layout.num_cached:
            raise ValueError(f"the layout has {layout.num_cached} cached tokens but kv is None")
        block: Any = self.block
        if self.config.remat:
            block = nn.remat(block, prevent_cse=False)
        layers = nn.scan(
            block,
            variable_axes={"params": 0},
            split_rngs={"params": True, "dropout": True},
            in_axes=(0, nn.broadcast, nn.broadcast, nn.broadcast, nn.broadcast),
            length=self.config.layers,
            # straight-line code of a few layers is a fifth faster on CPU than the loop
            unroll=min(self.config.layers, UNROLL),
        )(self.config, self.base, layout, train, name="layers")
        past = None if kv is None else (kv.k.astype(dtype), kv.v.astype(dtype))
        past_valid = None if kv is None else kv.valid
        past_times = None if kv is None else kv.times
        x, (k, v) = layers(x.astype(dtype), past, valid, times, past_valid, past_times)
        tokens = layout.token_positions
        return x, KV(k, v, times.key[:, tokens], valid[:, tokens])


def make_cached(past: Any, past_valid: jax.Array | None) -> Cached | None:
    """The attention cache of one layer from its slice of the state."""
    if past is None or past_valid is None:
        return None
    return Cached(past[0], past[1], past_valid)
