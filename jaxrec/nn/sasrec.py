"""SASRec (arXiv 1808.09781): a causal softmax transformer over item embeddings.

`classic`: post-norm with a ReLU feed-forward network. `modern`: pre-norm, SwiGLU and gated
residuals, x + sigmoid(W x) * f(norm(x)) (LiGR, arXiv 2502.03417; eSASRec, arXiv 2508.06450).
"""

import flax.linen as nn
import jax

from jaxrec.nn.attention import attend
from jaxrec.nn.stack import Block, KeysValues, read_by
from jaxrec.types import Times, TokenState


class SASRecBlock(Block):
    """Attention and feed-forward network with the residual form of `config.sasrec.block`."""

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
        modern = config.sasrec.block == "modern"
        width = config.width

        def norm(name: str, y: jax.Array) -> jax.Array:
            return nn.LayerNorm(epsilon=1e-6, dtype=x.dtype, name=name)(y)

        def dense(name: str, y: jax.Array, size: int = width) -> jax.Array:
            return nn.Dense(size, dtype=x.dtype, name=name)(y)

        first_norm = nn.LayerNorm(epsilon=1e-6, dtype=x.dtype, name="attention_norm")
        key, value = (nn.Dense(width, dtype=x.dtype, name=name) for name in ("key", "value"))

        def keys_values(y: jax.Array) -> KeysValues:
            inner = first_norm(y.astype(x.dtype)) if modern else y.astype(x.dtype)
            return self.split_heads(key(inner)), self.split_heads(value(inner))

        inner = first_norm(x) if modern else x
        q = self.split_heads(dense("query", inner))
        k, v = keys_values(x)
        if self.keys_only:
            return x, (k, v)
        mixed = attend(
            q,
            k,
            v,
            self.layout,
            valid,
            kind="softmax",
            scale=self.head_width**-0.5,
            bias=self.bias(config.sasrec.position_bias, config.sasrec.time_bias, times, past),
            cached=self.cached(past, keys_values),
            backend=config.attention,
        )
        mixed = read_by(config, self.layout, mixed.reshape(x.shape))
        mixed = self.drop(dense("out", mixed))
        if modern:
            x = x + nn.sigmoid(dense("attention_gate", x)) * mixed
            inner = norm("ffn_norm", x)
            size = config.sasrec.ffn_width or 2 * width
            hidden = nn.silu(dense("ffn_gate", inner, size)) * dense("ffn_in", inner, size)
            y = self.drop(dense("ffn_out", hidden))
            x = x + nn.sigmoid(dense("residual_gate", x)) * y
        else:
            x = first_norm(x + mixed)
            hidden = nn.relu(dense("ffn_in", x, config.sasrec.ffn_width or width))
            x = norm("ffn_norm", x + self.drop(dense("ffn_out", self.drop(hidden))))
        return x, self.of_tokens(k, v)
