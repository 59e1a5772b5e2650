"""HSTU, Hierarchical Sequential Transduction Units (arXiv 2402.17152 eqs. 1-3)."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxrec.nn.attention import attend
from jaxrec.nn.stack import Block, KeysValues
from jaxrec.types import Times, TokenState


def layer_norm(x: jax.Array, eps: float = 1e-6) -> jax.Array:
    """LayerNorm over the last axis without affine parameters, computed in float32 or wider."""
    y = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    y = y - y.mean(-1, keepdims=True)
    y = y * jax.lax.rsqrt(jnp.square(y).mean(-1, keepdims=True) + eps)
    return y.astype(x.dtype)


class HSTUBlock(Block):
    """`[U V Q K] = silu(LN(x) W)`; `y = W_o (U * LN(A V)) + x`, A pointwise without softmax."""

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        past: TokenState | None,
        valid: jax.Array,
        times: Times,
    ) -> tuple[jax.Array, KeysValues]:
        """See `Block`."""
        config, hstu = self.config, self.config.hstu
        width = config.width
        dense = nn.Dense(4 * width, use_bias=False, dtype=x.dtype, name="uvqk")

        def project(y: jax.Array) -> tuple[jax.Array, ...]:
            uvqk = dense(layer_norm(y))
            if hstu.activation == "silu":
                uvqk = nn.silu(uvqk)
            u, v, q, k = jnp.split(uvqk, 4, axis=-1)
            return u, *(self.split_heads(x) for x in (v, q, k))

        def keys_values(y: jax.Array) -> KeysValues:
            _, v, _, k = project(y.astype(x.dtype))
            return k, v

        u, v, q, k = project(x)
        if self.keys_only:
            return x, (k, v)
        mixed = attend(
            q,
            k,
            v,
            self.layout,
            valid,
            kind="pointwise",
            normalizer=hstu.normalizer or self.base.normalizer,
            bias=self.bias(hstu.position_bias, hstu.time_bias, times, past),
            cached=self.cached(past, keys_values),
            backend=config.attention,
        )
        mixed = u * layer_norm(mixed.reshape(u.shape))
        out = nn.Dense(width, dtype=x.dtype, name="out")(self.drop(mixed))
        return x + out, self.of_tokens(k, v)
