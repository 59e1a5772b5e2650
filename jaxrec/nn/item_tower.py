"""The item tower of HLLM (arXiv 2409.12740 §3.1): a language model turns a text into a vector.

The vector is the last hidden state of a learned embedding token behind the text (`token`), or
the mean of the hidden states of its tokens (`mean`, which needs no training).

Dimension letters: R rows, T positions, D width. `count` is the number of texts of a batch.
"""

import dataclasses

import chex
import jax
import jax.numpy as jnp

from jaxrec.nn.text_model import TextModel
from jaxrec.types import Array, Params

POOLINGS = ("mean", "token")
TOWER = "item_tower"  # name of the tower among the parameters of a run


def without_tower(params: Params) -> Params:
    """The parameters of a run without those of its item tower."""
    return {name: group for name, group in params.items() if name != TOWER}


@dataclasses.dataclass(frozen=True)
class ItemTower:
    """Pure functions of {"decoder": parameters of `text`, "token": [D] (`token` pooling)}."""

    text: TextModel
    pooling: str = "mean"

    def __post_init__(self) -> None:
        if self.pooling not in POOLINGS:
            raise ValueError(f"pooling={self.pooling!r}: allowed are {', '.join(POOLINGS)}")

    @property
    def end(self) -> int | None:
        """Id of the embedding token, the one behind the vocabulary; None: no such token."""
        return self.text.vocabulary if self.pooling == "token" else None

    def init(self, rng: jax.Array) -> Params:
        """Float32 parameters from a key."""
        decoder_rng, token_rng = jax.random.split(rng)
        return self.adopt(self.text.init(decoder_rng), token_rng)

    def adopt(self, decoder: Params, rng: jax.Array) -> Params:
        """Parameters around those of a pretrained decoder.

        The embedding token is drawn like the others: each dimension has the mean and spread that it
        has over the vocabulary.
        """
        if self.pooling == "mean":
            return {"decoder": decoder}
        embedding = jnp.asarray(decoder["embedding"])
        noise = jax.random.normal(rng, embedding.shape[1:])
        return {"decoder": decoder, "token": embedding.mean(0) + embedding.std(0) * noise}

    def vectors(
        self,
        params: Params,
        tokens: Array,
        owner: Array,
        positions: Array,
        count: int,
        *,
        rows: int = 0,
    ) -> jax.Array:
        """float32 [count, D] vectors of the texts 1..count of a packed batch.

        tokens, owner (the text of a position, 0 is padding), positions: int32 [R, T] of packed
        texts. rows: rows encoded at once, their activations computed again in the backward pass
        (0: all). Texts that are not there get zeros. Raises ValueError unless `rows` divides R.
        """
        chex.assert_rank(tokens, 2)
        chex.assert_equal_shape([tokens, owner, positions])
        total, chunk = tokens.shape[0], rows or tokens.shape[0]
        if total % chunk:
            raise ValueError(f"{total} rows cannot be encoded {chunk} at a time")

        def encode(packed: tuple[Array, Array, Array]) -> jax.Array:
            return self._pool(params, *packed, count)

        packed = (tokens, owner, positions)
        if chunk == total:
            return encode(packed)
        split = [jnp.asarray(a).reshape(-1, chunk, a.shape[1]) for a in packed]
        # a text lies in one row alone, so the chunks add up
        return jax.lax.map(jax.checkpoint(encode), tuple(split)).sum(0)

    def _pool(
        self, params: Params, tokens: Array, owner: Array, positions: Array, count: int
    ) -> jax.Array:
        """float32 [count, D]: hidden states summed over their texts, over the weights' sum."""
        decoder = params["decoder"]
        vocabulary = self.text.vocabulary
        x = decoder["embedding"][jnp.minimum(tokens, vocabulary - 1)]
        is_end = jnp.asarray(tokens == vocabulary)
        if self.pooling == "token":
            x = jnp.where(is_end[..., None], params["token"][None, None], x)
        y, _ = self.text.network.apply({"params": decoder}, x, owner, positions)
        weight = is_end if self.pooling == "token" else jnp.asarray(owner > 0)
        weight = weight.reshape(-1).astype(jnp.float32)
        flat = y.reshape(-1, y.shape[-1]).astype(jnp.float32)
        numbers = jnp.asarray(owner).reshape(-1)
        total = jax.ops.segment_sum(flat * weight[:, None], numbers, count + 1)
        size = jax.ops.segment_sum(weight, numbers, count + 1)
        return (total / jnp.maximum(size, 1.0)[:, None])[1:]
