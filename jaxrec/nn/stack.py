"""What every encoder shares: layers under a scan, and the tokens' K/V as input and output.

Encoder contract: `(x [B, T, D], layout, lengths [B, S], times, *, kv=None, train) -> (y [B, T, D],
kv)`; `kv` in is what a state keeps of `layout.num_cached` earlier tokens, `kv` out the same of the
layout's own tokens: their keys and values in every layer (`types.KV`), or with
`model.state=embedding` (Rec2PM, arXiv 2602.11605) their outputs (`types.TokenOutputs`), which
every layer projects as it projects its own input.
"""

from collections.abc import Callable
from typing import Any, TypeAlias

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from jaxrec.config import ModelConfig
from jaxrec.layout import SegmentLayout
from jaxrec.nn.attention import Cached
from jaxrec.nn.bias import BiasTables, RelativeBias
from jaxrec.nn.depth import DTYPES, WeightPlacement, stack_layers, with_users
from jaxrec.types import KV, Array, Times, TokenOutputs, TokenState

UNROLL = 4  # layers per iteration of the scan over depth

KeysValues: TypeAlias = tuple[jax.Array, jax.Array]  # k, v [B, T or C, N, H] of one layer


class Block(nn.Module):
    """One layer. Subclasses implement `__call__`."""

    config: ModelConfig
    base: SegmentLayout  # the model's layout: sizes of the bias tables
    layout: SegmentLayout  # of this forward
    train: bool

    def __call__(
        self, x: jax.Array, past: TokenState | None, valid: jax.Array, times: Times
    ) -> tuple[jax.Array, KeysValues]:
        """Output [B, T, D] and the K/V of the layout's tokens, [B, C, N, H].

        x: [B, T, D]; past: earlier tokens, their K/V in this layer, [B, C, N, H], or outputs;
        valid: bool [B, T].
        """
        raise NotImplementedError

    @property
    def head_width(self) -> int:
        """H."""
        return self.config.width // self.config.heads

    def split_heads(self, x: jax.Array) -> jax.Array:
        """[..., D] -> [..., N, H]."""
        return x.reshape(*x.shape[:-1], self.config.heads, self.head_width)

    @staticmethod
    def finish(config: ModelConfig, x: jax.Array) -> jax.Array:
        """What follows the last layer (a norm, say), inside the stack's compact method."""
        del config
        return x

    def drop(self, x: jax.Array) -> jax.Array:
        """Dropout, only in training."""
        return nn.Dropout(self.config.dropout, deterministic=not self.train)(x)

    def bias(
        self, distance: bool, time: bool, times: Times, past: TokenState | None
    ) -> RelativeBias | None:
        """The layer's relative bias by distance and by time, and by age of tokens."""
        tables = BiasTables(self.base, self.config.heads, distance, time, name="bias")
        return tables(self.layout, times, None if past is None else past.times)

    @staticmethod
    def cached(
        past: TokenState | None, project: Callable[[jax.Array], KeysValues]
    ) -> Cached | None:
        """The attention cache of earlier tokens.

        project: what this layer makes of token outputs [B, C, D].
        """
        match past:
            case None:
                return None
            case KV():
                return Cached(past.k, past.v, past.valid)
            case TokenOutputs():
                return Cached(*project(jnp.asarray(past.outputs)), past.valid)

    def of_tokens(self, k: jax.Array, v: jax.Array) -> KeysValues:
        """K/V [B, C, N, H] at the layout's token positions: what a user state keeps."""
        return k[:, self.layout.token_positions], v[:, self.layout.token_positions]


class Stack(nn.Module):
    """`config.layers` blocks under `nn.scan`, optionally rematerialised."""

    config: ModelConfig
    base: SegmentLayout
    block: type[Block]
    placement: WeightPlacement | None = None

    @nn.compact
    def __call__(
        self,
        x: Array,
        layout: SegmentLayout,
        lengths: Array,
        times: Times,
        *,
        kv: TokenState | None = None,
        train: bool = False,
    ) -> tuple[jax.Array, TokenState]:
        """See the module docstring; raises ValueError when `kv` does not fit the layout."""
        dtype = DTYPES[self.config.dtype]
        valid = jnp.asarray(layout.valid(lengths))
        if kv is None and layout.num_cached:
            raise ValueError(f"the layout has {layout.num_cached} cached tokens but kv is None")
        past, past_axes = _per_layer(kv, dtype)
        layers = stack_layers(
            self.block,
            self.config,
            self.placement,
            initializing=self.is_initializing(),
            in_axes=(past_axes, nn.broadcast, nn.broadcast),
            # straight-line code of a few layers is a fifth faster on CPU than the loop
            unroll=min(self.config.layers, UNROLL),
        )(self.config, self.base, layout, train, name="layers")
        inputs = with_users(self.placement, jnp.asarray(x, dtype))
        y, (k, v) = layers(inputs, past, valid, times)
        y = self.block.finish(self.config, y)
        tokens = layout.token_positions
        if self.config.state == "kv":
            return y, KV(k, v, times.key[:, tokens], valid[:, tokens])
        return y, TokenOutputs(y[:, tokens], times.key[:, tokens], valid[:, tokens])


def _per_layer(kv: TokenState | None, dtype: DTypeLike) -> tuple[TokenState | None, Any]:
    """(what the layers get of earlier tokens, `in_axes` for it: 0 where each layer has its own)."""
    if isinstance(kv, KV):
        k, v = kv.k.astype(dtype), kv.v.astype(dtype)
        return kv._replace(k=k, v=v), KV._make((0, 0, nn.broadcast, nn.broadcast))
    return kv, nn.broadcast
