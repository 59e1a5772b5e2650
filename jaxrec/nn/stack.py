"""What every encoder shares: layers under a scan, and the tokens' K/V as input and output.

Encoder contract: `(x [B, T, D], layout, lengths [B, S], times, *, kv=None, train) -> (y [B, T, D],
kv)`; `kv` in is what a state keeps of `layout.num_cached` earlier tokens, `kv` out the same of the
layout's own tokens: their keys and values in every stored layer (`types.KV`), or with
`model.state=embedding` (Rec2PM, arXiv 2602.11605) their outputs (`types.TokenOutputs`), which
every layer projects as it projects its own input.

K/V of the first layer are in no state: they are made again from what the tokens entered it with,
which costs half as much to keep, or nothing where it is the same for every user and segment.
"""

from collections.abc import Callable
from typing import Any, TypeAlias

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from jaxrec.config import ModelConfig
from jaxrec.layout import SegmentLayout
from jaxrec.nn.attention import Cached
from jaxrec.nn.bias import BiasTables, RelativeBias
from jaxrec.nn.depth import DTYPES, WeightPlacement, stack_layers, with_users
from jaxrec.types import KV, Array, Times, TokenOutputs, TokenState

# model.token_input of tokens that start from items of their segment, and of those that read none
AVERAGES, BLIND = ("pooled", "parts", "mean"), ("mean", "constant")
UNROLL = 4  # layers per iteration of the scan over depth

KeysValues: TypeAlias = tuple[jax.Array, jax.Array]  # k, v [B, T or C, N, H] of one layer


class Block(nn.Module):
    """One layer. Subclasses implement `__call__`."""

    config: ModelConfig
    base: SegmentLayout  # the model's layout: sizes of the bias tables
    layout: SegmentLayout  # of this forward
    train: bool
    keys_only: bool = False  # x are inputs of tokens; returns their K/V, and x as it is

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
        """The layer's relative bias by distance and by time, and of tokens by age and by part."""
        parts = self.config.token_distance
        tables = BiasTables(self.base, self.config.heads, distance, time, parts, name="bias")
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


def keeps_inputs(config: ModelConfig, base: SegmentLayout) -> bool:
    """Whether tokens enter the first layer with something of their own, which a state must keep.

    A learned vector alone is the same for every user and segment.
    """
    return config.token_input in AVERAGES or base.positions != "segment"


def read_by(config: ModelConfig, layout: SegmentLayout, mixed: jax.Array) -> jax.Array:
    """What positions [B, T, ...] take from attention: nothing where they are `BLIND` tokens."""
    if config.token_input not in BLIND or not layout.num_tokens:
        return mixed
    reads = ~layout.is_token.reshape(1, -1, *(1,) * (mixed.ndim - 2))
    return jnp.where(reads, mixed, 0)


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
        token_inputs: Array | None = None,
        train: bool = False,
    ) -> tuple[jax.Array, TokenState]:
        """See the module docstring; raises ValueError when `kv` does not fit the layout.

        token_inputs: [k, D], what the tokens of any segment enter the first layer with, where
        `kv` does not have it (`keeps_inputs`).
        """
        dtype = DTYPES[self.config.dtype]
        valid = jnp.asarray(layout.valid(lengths))
        if kv is None and layout.num_cached:
            raise ValueError(f"the layout has {layout.num_cached} cached tokens but kv is None")
        if isinstance(kv, KV):
            kv = self.with_first_layer(kv, layout, token_inputs)
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
            own = inputs[:, tokens] if keeps_inputs(self.config, self.base) else None
            return y, KV(k[1:], v[1:], own, times.key[:, tokens], valid[:, tokens])
        return y, TokenOutputs(y[:, tokens], times.key[:, tokens], valid[:, tokens])

    def with_first_layer(self, kv: KV, layout: SegmentLayout, token_inputs: Array | None) -> KV:
        """`kv` with the K/V of the first layer in front; arguments as of the call."""
        dtype = DTYPES[self.config.dtype]
        index = np.arange(layout.num_cached)
        inputs = kv.inputs
        if inputs is None:
            if token_inputs is None:
                raise ValueError("kv has no inputs of the first layer: pass those of any segment")
            # the same for every segment and user: made once, for one of each
            inputs = token_inputs[None]
            index = layout.key_token_index[: layout.num_cached]
        inputs = jnp.asarray(inputs, dtype)
        params = jax.tree.map(lambda leaf: leaf[0], self.variables["params"]["layers"])
        if self.placement is not None and self.placement.splits_weights():
            params = self.placement.gather(params, self.config.layers, dtype)
        # parent=None: no module of this stack, the parameters are there already
        block = self.block(self.config, self.base, layout, False, keys_only=True, parent=None)
        nothing = jnp.zeros(inputs.shape[:2], jnp.int32)
        times, valid = Times(nothing, nothing), nothing > 0
        _, keys_values = block.apply({"params": params}, inputs, None, valid, times)
        k, v = (
            jnp.concatenate([jnp.broadcast_to(new[:, index], old.shape[1:])[None], old])
            for new, old in zip(keys_values, (kv.k, kv.v), strict=True)
        )
        return kv._replace(k=k, v=v, inputs=None)


def _per_layer(kv: TokenState | None, dtype: DTypeLike) -> tuple[TokenState | None, Any]:
    """(what the layers get of earlier tokens, `in_axes` for it: 0 where each layer has its own)."""
    if isinstance(kv, KV):
        k, v = kv.k.astype(dtype), kv.v.astype(dtype)
        return kv._replace(k=k, v=v), KV._make((0, 0, None, nn.broadcast, nn.broadcast))
    return kv, nn.broadcast
