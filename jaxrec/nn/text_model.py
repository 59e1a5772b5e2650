"""A Llama language model over words: packed texts, cached keys and values, next-word logits.

Dimension letters: R rows, T positions of a row, C cached positions, L layers, N heads, H head
width, D width, W words of the vocabulary.

Texts are packed: several stand behind each other in a row, told apart by a segment number, so
that rows have (almost) no padding. Attention is the project's one `attend` over a plain causal
layout; who is in whose text comes in as its bias.
"""

import dataclasses
import functools
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxrec.config import ModelConfig
from jaxrec.layout import Run, SegmentLayout
from jaxrec.nn import llama
from jaxrec.nn.attention import Cached
from jaxrec.nn.stack import DTYPES, rematerialised
from jaxrec.runtime import mesh as mesh_lib
from jaxrec.types import Array, Params

_APART = -1e30  # logit of words of another text


class Cache(NamedTuple):
    """Keys and values of earlier positions: k, v [L, R, C, kv heads, H], valid bool [R, C]."""

    k: jax.Array
    v: jax.Array
    valid: jax.Array


@dataclasses.dataclass(frozen=True)
class PackedBias:
    """Implements `attention.Bias`: 0 inside a text, minus infinity between texts of a row."""

    texts: jax.Array  # int32 [R, T] the text of every position
    cached: int

    def segments(self, run: Run, keys: np.ndarray) -> jax.Array:
        del run, keys
        return self.texts[None]  # a row is one segment

    def block(self, segment: Any, run: Run, start: int, stop: int) -> tuple[Any, Any]:
        del run
        return self._own(segment[:, start:stop], segment[:, :stop]), jnp.zeros((1, 1, 1, 1))

    def dense(self) -> jax.Array:
        own = self._own(self.texts, self.texts)
        return jnp.pad(own, ((0, 0), (0, 0), (0, 0), (self.cached, 0)))

    @staticmethod
    def _own(asks: jax.Array, keys: jax.Array) -> jax.Array:
        return jnp.where(asks[:, :, None] == keys[:, None], 0.0, _APART)[:, None]


class TextLayer(nn.Module):
    """One decoder layer in the form that a scan over depth needs."""

    config: ModelConfig
    layout: SegmentLayout

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        past: Any,
        turn: llama.Rotation,
        segments: jax.Array,
        past_valid: jax.Array | None,
    ) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        cached = None
        if past is not None and past_valid is not None:
            cached = Cached(past[0], past[1], past_valid)
        bias = PackedBias(segments, self.layout.num_cached)
        y, k, v = llama.decoder_layer(self.config, x, turn, self.layout, segments > 0, bias, cached)
        return y, (k, v)


class TextDecoder(nn.Module):
    """Word embedding, layers, final norm and head (`tied`: the embedding itself).

    config: `backbone` llama; width, heads, layers, dtype, attention, remat and `llama` count.
    """

    config: ModelConfig
    vocabulary: int
    tied: bool = True

    def setup(self) -> None:
        width = self.config.width
        init = nn.initializers.normal(0.02)
        self.embedding = self.param("embedding", init, (self.vocabulary, width))
        if not self.tied:
            self.head = llama.Projection(self.vocabulary)
        self.final_norm = llama.RMSNorm(self.config.llama.norm_eps)

    def embed(self, words: jax.Array) -> jax.Array:
        """int32 [R, T] -> [R, T, D]."""
        return self.embedding[words]

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        segments: jax.Array,
        positions: jax.Array,
        past: Cache | None = None,
    ) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        """Last hidden states [R, T, D] behind the final norm, and (k, v) [L, R, T, N, H].

        x: [R, T, D] word vectors; segments: int32 [R, T] the text a position belongs to, from
        1 on, 0 is padding; positions: int32 [R, T] inside the text. past: earlier positions
        of the row's only text; every valid one is seen by every position.
        """
        config, length = self.config, x.shape[1]
        dtype = DTYPES[config.dtype]
        count = 0 if past is None else past.k.shape[2]
        layout = SegmentLayout(((length, 0),), cached=(count,) if count else ())
        rates = llama.frequencies(config.llama, config.head_width)
        turn = llama.rotation(positions, rates, jnp.promote_types(dtype, jnp.float32))
        layer: Any = TextLayer
        if mesh_lib.splits_weights() and not self.is_initializing():
            gather = functools.partial(mesh_lib.whole, layers=config.layers, dtype=dtype)
            layer = nn.map_variables(layer, "params", gather)
        layer = rematerialised(layer, config)
        layers = nn.scan(
            layer,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            in_axes=(0, nn.broadcast, nn.broadcast, nn.broadcast),
            length=config.layers,
        )(config, layout, name="layers")
        kv = None if past is None else (past.k.astype(dtype), past.v.astype(dtype))
        valid = None if past is None else past.valid
        y, new = layers(mesh_lib.by_users(x.astype(dtype)), kv, turn, segments, valid)
        return self.final_norm(y), new

    def logits(self, y: jax.Array) -> jax.Array:
        """float32 [..., W] of hidden states [..., D]."""
        y = y @ self.embedding.T.astype(y.dtype) if self.tied else self.head(y)
        return y.astype(jnp.float32)

    def everything(self, words: jax.Array) -> jax.Array:
        """Touches every parameter: next-word logits of one text per row."""
        ones = jnp.ones_like(words)
        y, _ = self(self.embed(words), ones, jnp.cumsum(ones, axis=1) - 1)
        return self.logits(y)


@dataclasses.dataclass(frozen=True)
class TextModel:
    """A language model as pure functions of its parameters; made by `interop.huggingface`.

    context: positions that a text may have.
    """

    config: ModelConfig
    vocabulary: int
    tied: bool = True
    context: int = 2048

    @property
    def network(self) -> TextDecoder:
        return TextDecoder(self.config, self.vocabulary, self.tied)

    def init(self, rng: jax.Array) -> Any:
        """Float32 parameters from a key."""
        words = jnp.zeros((1, 2), jnp.int32)
        return self.network.init(rng, words, method=TextDecoder.everything)["params"]

    def hidden(
        self,
        params: Params,
        words: Array,
        segments: Array,
        positions: Array,
        past: Cache | None = None,
    ) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        """`TextDecoder.__call__` of words int32 [R, T]."""
        x = jnp.asarray(params["embedding"])[words]
        apply: Any = self.network.apply
        return apply({"params": params}, x, segments, positions, past)

    def logits(self, params: Any, y: jax.Array) -> jax.Array:
        """float32 [..., W] of hidden states [..., D]."""
        apply: Any = self.network.apply
        return apply({"params": params}, y, method=TextDecoder.logits)

    def generate(self, params: Any, prompt: np.ndarray, count: int) -> np.ndarray:
        """int32 [count]: the most likely continuation of a prompt, word by word.

        prompt: int [P]. Keys and values are cached, every word costs one position. Raises
        ValueError for an empty prompt and for a text longer than `context`.
        """
        prompt = np.asarray(prompt, np.int32).reshape(-1)
        total = len(prompt) + count
        if not len(prompt):
            raise ValueError("the prompt is empty: at least one word is needed")
        if total > self.context:
            raise ValueError(
                f"{len(prompt)} words of prompt and {count} to generate: the model's context "
                f"is {self.context}"
            )
        shape = (self.config.layers, 1, total, self.config.kv_heads, self.config.head_width)
        dtype = DTYPES[self.config.dtype]
        empty = Cache(jnp.zeros(shape, dtype), jnp.zeros(shape, dtype), jnp.zeros((1, total), bool))

        def read(params: Any, words: jax.Array, start: jax.Array, past: Cache) -> Any:
            """(next word [1, 1], cache) after words [1, T] that stand at `start`."""
            ones = jnp.ones_like(words)
            positions = start + jnp.cumsum(ones, axis=1) - 1
            y, (k, v) = self.hidden(params, words, ones, positions, past)
            at = (0, 0, start, 0, 0)
            cache = Cache(
                jax.lax.dynamic_update_slice(past.k, k.astype(dtype), at),
                jax.lax.dynamic_update_slice(past.v, v.astype(dtype), at),
                jnp.arange(total)[None] < start + words.shape[1],
            )
            best = jnp.argmax(self.logits(params, y[:, -1]), axis=-1)
            return best.astype(jnp.int32)[:, None], cache

        read = jax.jit(read)
        word, cache = read(params, prompt[None], jnp.int32(0), empty)
        found = [word]
        for step in range(1, count):
            word, cache = read(params, word, jnp.int32(len(prompt) + step - 1), cache)
            found.append(word)
        return np.asarray(jnp.concatenate(found, axis=1))[0, :count]
