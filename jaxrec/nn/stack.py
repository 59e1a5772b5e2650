"""What every encoder shares: depth by scan, K/V of tokens in and out.

Encoder contract (DESIGN §2): `(x [B, T, D], layout, lengths [B, S], times, *, kv=None,
train) -> (y [B, T, D], kv)`; `kv` in holds the K/V of `layout.num_cached` earlier tokens,
`kv` out those of the layout's own tokens, [L, B, C, N, H].

With `model.state=embedding` (Rec2PM) a token is kept as its output alone, [1, B, C, 1, D] in
place of K, nothing in place of V, and every layer projects it as it projects its own input.
"""

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxrec.config import ModelConfig
from jaxrec.layout import SegmentLayout
from jaxrec.nn.attention import Cached
from jaxrec.nn.bias import BiasTables, RelativeBias
from jaxrec.runtime import mesh as mesh_lib
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

    @staticmethod
    def finish(config: ModelConfig, x: jax.Array) -> jax.Array:
        """What follows the last layer, inside the stack's compact method."""
        del config
        return x

    def drop(self, x: jax.Array) -> jax.Array:
        return nn.Dropout(self.config.dropout, deterministic=not self.train)(x)

    def bias(
        self, distance: bool, time: bool, times: Times, cached_times: jax.Array | None
    ) -> RelativeBias | None:
        tables = BiasTables(self.base, self.config.heads, distance, time, name="bias")
        return tables(self.layout, times, cached_times)

    def earlier(
        self,
        past: Any,
        valid: jax.Array | None,
        project: Callable[[jax.Array], tuple[jax.Array, jax.Array]],
    ) -> Cached | None:
        """The attention cache of earlier tokens from what the state keeps of them.

        project: what this layer makes of token outputs [B, C, D], (k, v) [B, C, N, H].
        """
        if past is None or valid is None:
            return None
        k, v = past if self.config.state == "kv" else project(past)
        return Cached(k, v, valid)

    def tokens_of(self, k: jax.Array, v: jax.Array) -> tuple[jax.Array, jax.Array]:
        """K/V at the layout's token positions: what a user state keeps."""
        return k[:, self.layout.token_positions], v[:, self.layout.token_positions]


# what the backward pass finds instead of computing it again (`model.remat_keep`)
KEPT: dict[str, Any] = {
    "nothing": None,
    "products": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
}


def rematerialised(block: Any, config: ModelConfig) -> Any:
    """The module class as `model.remat` and `model.remat_keep` want it."""
    if not config.remat:
        return block
    return nn.remat(block, prevent_cse=False, policy=KEPT[config.remat_keep])


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
        kept_by_layer = self.config.state == "kv"
        block: Any = self.block
        if mesh_lib.splits_weights() and not self.is_initializing():
            gather = functools.partial(mesh_lib.whole, layers=self.config.layers, dtype=dtype)
            block = nn.map_variables(block, "params", gather)
        block = rematerialised(block, self.config)  # around the gathering: weights are no residuals
        layers = nn.scan(
            block,
            variable_axes={"params": 0},
            split_rngs={"params": True, "dropout": True},
            in_axes=(0 if kept_by_layer else nn.broadcast, *(nn.broadcast,) * 4),
            length=self.config.layers,
            # straight-line code of a few layers is a fifth faster on CPU than the loop
            unroll=min(self.config.layers, UNROLL),
        )(self.config, self.base, layout, train, name="layers")
        past: Any = None
        if kv is not None:
            past = (kv.k.astype(dtype), kv.v.astype(dtype)) if kept_by_layer else outputs_of(kv)
        past_valid = None if kv is None else kv.valid
        past_times = None if kv is None else kv.times
        x = mesh_lib.by_users(x.astype(dtype))
        x, (k, v) = layers(x, past, valid, times, past_valid, past_times)
        x = self.block.finish(self.config, x)
        tokens = layout.token_positions
        if kept_by_layer:
            return x, KV(k, v, times.key[:, tokens], valid[:, tokens])
        return x, keep_outputs(x[:, tokens], times.key[:, tokens], valid[:, tokens])


def keep_outputs(tokens: jax.Array, times: jax.Array, valid: jax.Array) -> KV:
    """Outputs [B, C, D] as what a state keeps with `model.state=embedding`."""
    kept = tokens[None, :, :, None, :]
    return KV(kept, kept[:0], times, valid)


def outputs_of(kv: KV) -> jax.Array:
    """The inverse of `keep_outputs`: [B, C, D]."""
    return kv.k[0, :, :, 0]
