"""HSTU, Hierarchical Sequential Transduction Units (arXiv 2402.17152 eqs. 1-3)."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxrec.nn.attention import attend
from jaxrec.nn.stack import Block, KeysValues, read_by
from jaxrec.types import Times, TokenState


def layer_norm(x: jax.Array, eps: float = 1e-6) -> jax.Array:
    """LayerNorm over the last axis without affine parameters, computed in float32 or wider."""
    y = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    y = y - y.mean(-1, keepdims=True)
    y = y * jax.lax.rsqrt(jnp.square(y).mean(-1, keepdims=True) + eps)
    return y.astype(x.dtype)


class UVQK(nn.Module):
    """y W of a layer, whole or some of its parts; W [D, 4 D] holds u, v, q, k side by side."""

    @nn.compact
    def __call__(self, y: jax.Array, parts: str = "uvqk") -> list[jax.Array]:
        """[..., D] -> [..., D] of each part; only these are computed."""
        width = y.shape[-1]
        init = nn.initializers.lecun_normal()
        kernel = self.param("kernel", init, (width, 4 * width)).astype(y.dtype)
        if parts != "uvqk":
            columns = jnp.split(kernel, 4, axis=1)
            kernel = jnp.concatenate([columns["uvqk".index(part)] for part in parts], axis=1)
        product = jax.lax.dot_general(y, kernel, (((y.ndim - 1,), (0,)), ((), ())))
        return jnp.split(product, len(parts), axis=-1)


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
        uvqk = UVQK(name="uvqk")
        activation = nn.silu if hstu.activation == "silu" else lambda y: y

        def keys_values(y: jax.Array) -> KeysValues:
            v, k = (activation(part) for part in uvqk(layer_norm(y.astype(x.dtype)), "vk"))
            return self.split_heads(k), self.split_heads(v)

        if self.keys_only:
            return x, keys_values(x)
        u, *heads = (activation(part) for part in uvqk(layer_norm(x)))
        v, q, k = (self.split_heads(part) for part in heads)
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
        mixed = read_by(config, self.layout, mixed.reshape(u.shape))
        mixed = u * layer_norm(mixed)
        out = nn.Dense(config.width, dtype=x.dtype, name="out")(self.drop(mixed))
        return x + out, self.of_tokens(k, v)
