"""A Llama language model over subword tokens: packed texts, cached K/V, next-token logits.

Dimension letters: R rows, T positions of a row, C cached positions, L layers, N heads, H head
width, D width, V tokens of the vocabulary.

Texts are packed: several stand behind each other in a row, distinguished by a segment number, so
that rows have (almost) no padding. Attention is `attention.attend` over a plain causal layout;
a bias keeps the texts of a row apart.
"""

import dataclasses
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxrec.config import ModelConfig
from jaxrec.layout import Run, SegmentLayout
from jaxrec.nn import llama
from jaxrec.nn.attention import Cached
from jaxrec.nn.depth import DTYPES, WeightPlacement, stack_layers, with_users
from jaxrec.nn.stack import KeysValues
from jaxrec.types import Array, Params

_APART = -1e30  # logit of tokens of another text


class Cache(NamedTuple):
    """Keys and values of earlier positions: k, v [L, R, C, kv heads, H], valid bool [R, C].

    Inside a layer k and v have no axis of the layers.
    """

    k: jax.Array
    v: jax.Array
    valid: jax.Array


@dataclasses.dataclass(frozen=True)
class PackedBias:
    """Implements `attention.Bias`: 0 inside a text, minus infinity between texts of a row."""

    texts: jax.Array  # int32 [R, T] the text of every position
    cached: int

    def segments(self, run: Run, keys: np.ndarray) -> jax.Array:
        """[1, R, T] the texts."""
        del run, keys
        return self.texts[None]  # a row is one segment

    def block(
        self, segment: jax.Array, run: Run, start: int, stop: int
    ) -> tuple[jax.Array, jax.Array]:
        """[R, 1, rows, stop], and nothing for earlier positions."""
        del run
        bias = _between_texts(segment[:, start:stop], segment[:, :stop])
        return bias, jnp.zeros((1, 1, 1, 1))

    def dense(self) -> jax.Array:
        """[R, 1, T, C + T]."""
        bias = _between_texts(self.texts, self.texts)
        return jnp.pad(bias, ((0, 0), (0, 0), (0, 0), (self.cached, 0)))


def _between_texts(queries: jax.Array, keys: jax.Array) -> jax.Array:
    """[R, 1, Q, K] of the texts that queries [R, Q] and keys [R, K] belong to."""
    return jnp.where(queries[:, :, None] == keys[:, None], 0.0, _APART)[:, None]


class TextLayer(nn.Module):
    """One decoder layer as a scan over depth calls it."""

    config: ModelConfig
    layout: SegmentLayout

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        past: Cache | None,
        turn: llama.Rotation,
        segments: jax.Array,
    ) -> tuple[jax.Array, KeysValues]:
        """Output [R, T, D] and this layer's k and v [R, T, kv heads, H]."""
        bias = PackedBias(segments, self.layout.num_cached)
        cached = None if past is None else Cached(*past)
        y, k, v = llama.decoder_layer(
            self.config, x, turn, self.layout, segments > 0, bias=bias, cached=cached
        )
        return y, (k, v)


class TextDecoder(nn.Module):
    """Token embedding, layers, final norm and head (`tied`: the embedding itself).

    config: `backbone` llama; width, heads, layers, dtype, attention, remat and `llama` count.
    """

    config: ModelConfig
    vocabulary: int
    tied: bool = True
    placement: WeightPlacement | None = None

    def setup(self) -> None:
        """Parameters outside the layers."""
        width = self.config.width
        init = nn.initializers.normal(0.02)
        self.embedding = self.param("embedding", init, (self.vocabulary, width))
        if not self.tied:
            self.head = llama.Projection(self.vocabulary)
        self.final_norm = llama.RMSNorm(self.config.llama.norm_eps)

    def embed(self, tokens: jax.Array) -> jax.Array:
        """int32 [R, T] -> [R, T, D]."""
        return self.embedding[tokens]

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        segments: jax.Array,
        positions: jax.Array,
        past: Cache | None = None,
    ) -> tuple[jax.Array, KeysValues]:
        """Last hidden states [R, T, D] behind the final norm, and (k, v) [L, R, T, N, H].

        x: [R, T, D] token vectors; segments: int32 [R, T] the text a position belongs to, from
        1 on, 0 is padding; positions: int32 [R, T] inside the text. past: earlier positions
        of the row's only text; every valid one is seen by every position.
        """
        config, length = self.config, x.shape[1]
        dtype = DTYPES[config.dtype]
        count = 0 if past is None else past.k.shape[2]
        layout = SegmentLayout(((length, 0),), cached=(count,) if count else ())
        rates = llama.frequencies(config.llama, config.head_width)
        turn = llama.rotation(positions, rates, jnp.promote_types(dtype, jnp.float32))
        past_axes: Any = nn.broadcast
        if past is not None:
            past = Cache(past.k.astype(dtype), past.v.astype(dtype), past.valid)
            past_axes = Cache._make((0, 0, nn.broadcast))
        layers = stack_layers(
            TextLayer,
            config,
            self.placement,
            initializing=self.is_initializing(),
            in_axes=(past_axes, nn.broadcast, nn.broadcast),
        )(config, layout, name="layers")
        y, new = layers(with_users(self.placement, x.astype(dtype)), past, turn, segments)
        return self.final_norm(y), new

    def logits(self, y: jax.Array) -> jax.Array:
        """float32 [..., V] of hidden states [..., D]."""
        y = y @ self.embedding.T.astype(y.dtype) if self.tied else self.head(y)
        return y.astype(jnp.float32)

    def everything(self, tokens: jax.Array) -> jax.Array:
        """Touches every parameter: next-token logits of one text per row."""
        ones = jnp.ones_like(tokens)
        y, _ = self(self.embed(tokens), ones, jnp.cumsum(ones, axis=1) - 1)
        return self.logits(y)


@dataclasses.dataclass(frozen=True)
class TextModel:
    """A language model as pure functions of its parameters; made by `interop.huggingface`.

    context: positions that a text may have; placement: where a mesh keeps the weights.
    """

    config: ModelConfig
    vocabulary: int
    tied: bool = True
    context: int = 2048
    placement: WeightPlacement | None = None

    @property
    def network(self) -> TextDecoder:
        """The module whose parameters they are."""
        return TextDecoder(self.config, self.vocabulary, self.tied, self.placement)

    def init(self, rng: jax.Array) -> Params:
        """Float32 parameters from a key."""
        tokens = jnp.zeros((1, 2), jnp.int32)
        return self.network.init(rng, tokens, method=TextDecoder.everything)["params"]

    def hidden(
        self,
        params: Params,
        tokens: Array,
        segments: Array,
        positions: Array,
        past: Cache | None = None,
    ) -> tuple[jax.Array, KeysValues]:
        """`TextDecoder.__call__` of tokens int32 [R, T]."""
        x = jnp.asarray(params["embedding"])[tokens]
        apply: Any = self.network.apply
        return apply({"params": params}, x, segments, positions, past)

    def logits(self, params: Params, y: jax.Array) -> jax.Array:
        """float32 [..., V] of hidden states [..., D]."""
        apply: Any = self.network.apply
        return apply({"params": params}, y, method=TextDecoder.logits)

    def generate(self, params: Params, prompt: np.ndarray, count: int) -> np.ndarray:
        """int32 [count]: the most likely continuation of a prompt, token by token.

        prompt: int [P]. Keys and values are cached, every token costs one position. Raises
        ValueError for an empty prompt and for a text longer than `context`.
        """
        prompt = np.asarray(prompt, np.int32).reshape(-1)
        total = len(prompt) + count
        if not len(prompt):
            raise ValueError("the prompt is empty: at least one token is needed")
        if total > self.context:
            raise ValueError(
                f"{len(prompt)} tokens of prompt and {count} to generate: the model's context "
                f"is {self.context}"
            )
        shape = (self.config.layers, 1, total, self.config.kv_heads, self.config.head_width)
        dtype = DTYPES[self.config.dtype]
        empty = Cache(jnp.zeros(shape, dtype), jnp.zeros(shape, dtype), jnp.zeros((1, total), bool))

        def read(
            params: Params, tokens: jax.Array, start: jax.Array, past: Cache
        ) -> tuple[jax.Array, Cache]:
            """(next token [1, 1], cache) after tokens [1, T] that stand at `start`."""
            ones = jnp.ones_like(tokens)
            positions = start + jnp.cumsum(ones, axis=1) - 1
            y, (k, v) = self.hidden(params, tokens, ones, positions, past)
            at = (0, 0, start, 0, 0)
            cache = Cache(
                jax.lax.dynamic_update_slice(past.k, k.astype(dtype), at),
                jax.lax.dynamic_update_slice(past.v, v.astype(dtype), at),
                jnp.arange(total)[None] < start + tokens.shape[1],
            )
            best = jnp.argmax(self.logits(params, y[:, -1]), axis=-1)
            return best.astype(jnp.int32)[:, None], cache

        step = jax.jit(read)
        token, cache = step(params, prompt[None], jnp.int32(0), empty)
        continuation = [token]
        for number in range(1, count):
            token, cache = step(params, token, jnp.int32(len(prompt) + number - 1), cache)
            continuation.append(token)
        return np.asarray(jnp.concatenate(continuation, axis=1))[0, :count]
