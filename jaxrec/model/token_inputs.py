"""What compressed tokens enter the first layer with.

A learned vector alone is the same for every user: in the first layer such tokens ask the same
question of every segment, and only the second layer can ask one that depends on the answer. With
`model.token_input=pooled` a token starts from its segment: a learned softmax average of the items
(pooling by multi-head attention with learned queries, arXiv 1810.00825 eq. 6) is added. With
`parts` that average begins at a part of the segment, the j-th of k for token j, so that no two
tokens begin alike.

Baselines are tokens that do not read, to which attention brings nothing: with `mean` the plain mean
is added; with `constant` nothing is, so they say only that there is a segment, and when.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxrec.nn.attention.weights import HIDDEN
from jaxrec.nn.hstu import layer_norm
from jaxrec.types import Array


def mean_items(items: Array, lengths: Array) -> jax.Array:
    """[B, S, n, D] item vectors, lengths [B, S] -> [B, S, 1, D] means, LayerNorm without affine.

    The mean of a segment without items is 0.
    """
    size = items.shape[2]
    exists = jnp.arange(size)[None, None] < lengths[..., None]
    total = jnp.sum(jnp.where(exists[..., None], items, 0.0), axis=2, keepdims=True)
    return layer_norm(total / jnp.maximum(lengths, 1)[..., None, None])


POOLED = ("pooled", "parts")  # model.token_input of `PooledItems`
OWN_PART = 2.0  # logit that offsets of a token's own part begin with


class PooledItems(nn.Module):
    """k averages of a segment's items, one per token, each head with weights of its own.

    Weights are the softmax over the items j of <LN(x_j), q> / sqrt(H) + b_j, with a learned query
    q and a learned bias b_j of the offset in the segment. parts: whether b_j begins higher in the
    token's own part, the j-th of k.
    """

    tokens: int
    heads: int
    parts: bool = False

    @nn.compact
    def __call__(self, items: Array, lengths: Array) -> jax.Array:
        """[B, S, n, D] item vectors, lengths [B, S] -> [B, S, k, D], LayerNorm without affine.

        The averages of a segment without items are 0.
        """
        size, width = items.shape[2:]
        split = (*items.shape[:3], self.heads, width // self.heads)
        init = nn.initializers.normal
        query = self.param("query", init(1.0), (self.tokens, *split[3:]))
        own = np.arange(size)[:, None] * self.tokens // size == np.arange(self.tokens)

        def start(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
            return init(0.02)(key, shape) + OWN_PART * self.parts * own[..., None]

        offset = self.param("offset", start, (size, self.tokens, self.heads))
        keys = layer_norm(jnp.reshape(items, split)) * split[-1] ** -0.5
        logits = jnp.einsum("bsnhd,khd->bsnkh", keys, query.astype(keys.dtype)) + offset[None, None]
        exists = jnp.arange(size)[None, None] < lengths[..., None]
        weights = jax.nn.softmax(jnp.where(exists[..., None, None], logits, HIDDEN), axis=2)
        pooled = jnp.einsum("bsnkh,bsnhd->bskhd", weights, jnp.reshape(items, split))
        pooled = layer_norm(pooled.reshape(*items.shape[:2], self.tokens, width))
        return jnp.where((lengths > 0)[..., None, None], pooled, 0.0)
