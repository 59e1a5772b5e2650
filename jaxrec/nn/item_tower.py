"""The item tower of HLLM (arXiv 2409.12740 §3.1): a language model turns a text into a vector.

The vector is the last hidden state of a learned embedding token behind the text (`token`), or
the mean of the hidden states of its words (`mean`, which needs no training).

Dimension letters: R rows, T positions, N texts of a batch, D width.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from jaxrec.nn.text_model import TextModel
from jaxrec.types import Array, Params

POOLINGS = ("mean", "token")
TOWER = "item_tower"  # name of the tower among the parameters of a run


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
        """The word that stands for the embedding token, behind the vocabulary; None: no token."""
        return self.text.vocabulary if self.pooling == "token" else None

    def init(self, rng: jax.Array) -> Params:
        """Float32 parameters from a key."""
        words, token = jax.random.split(rng)
        return self.adopt(self.text.init(words), token)

    def adopt(self, decoder: Params, rng: jax.Array) -> Params:
        """Parameters around those of a pretrained decoder.

        The embedding token is drawn like one more word: each dimension has the mean and spread
        that it has over the vocabulary.
        """
        if self.pooling == "mean":
            return {"decoder": decoder}
        words = jnp.asarray(decoder["embedding"])
        noise = jax.random.normal(rng, words.shape[1:])
        return {"decoder": decoder, "token": words.mean(0) + words.std(0) * noise}

    def vectors(
        self,
        params: Params,
        words: Array,
        owner: Array,
        positions: Array,
        count: int,
        *,
        rows: int = 0,
    ) -> jax.Array:
        """float32 [count, D] vectors of the texts 1..count of a packed batch.

        words, owner, positions: int32 [R, T] as in `data.item_words.Packed`.

        rows: rows encoded at once, their activations computed again in the backward pass (must
        divide R; 0: all). Texts that are not there get zeros.
        """
        total, chunk = words.shape[0], rows or words.shape[0]
        if total % chunk:
            raise ValueError(f"{total} rows cannot be encoded {chunk} at a time")

        def encode(part: Any) -> jax.Array:
            words, owner, positions = part
            return self._pool(params, words, owner, positions, count)

        if chunk == total:
            return encode((words, owner, positions))
        split = [jnp.asarray(a).reshape(-1, chunk, a.shape[1]) for a in (words, owner, positions)]
        # a text lies in one row alone, so the parts add up
        return jax.lax.map(jax.checkpoint(encode), tuple(split)).sum(0)

    def _pool(self, params: Params, words: Any, owner: Any, positions: Any, count: int) -> Any:
        decoder = params["decoder"]
        vocabulary = self.text.vocabulary
        x = decoder["embedding"][jnp.minimum(words, vocabulary - 1)]
        is_token = jnp.asarray(words == vocabulary)
        if self.pooling == "token":
            x = jnp.where(is_token[..., None], params["token"][None, None], x)
        y, _ = self.text.network.apply({"params": decoder}, x, owner, positions)
        weight = is_token if self.pooling == "token" else jnp.asarray(owner > 0)
        weight = weight.reshape(-1).astype(jnp.float32)
        flat = y.reshape(-1, y.shape[-1]).astype(jnp.float32)
        numbers = jnp.asarray(owner).reshape(-1)
        total = jax.ops.segment_sum(flat * weight[:, None], numbers, count + 1)
        size = jax.ops.segment_sum(weight, numbers, count + 1)
        return (total / jnp.maximum(size, 1.0)[:, None])[1:]
