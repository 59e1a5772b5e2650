"""What attention computes from, and what a backend is."""

from typing import NamedTuple, Protocol

import jax
import numpy as np

from jaxrec.layout import Run, SegmentLayout
from jaxrec.nn.attention.weights import Weigh
from jaxrec.types import Array, Tree


class Cached(NamedTuple):
    """K/V of earlier tokens: k, v [B, C, N, H], valid bool [B, C]."""

    k: Array
    v: Array
    valid: Array


class Bias(Protocol):
    """What is added to the logits, computed block by block."""

    def segments(self, run: Run, keys: np.ndarray) -> Tree:
        """What `block` needs of each segment of a run: a pytree of arrays [s, ...].

        keys: int [K], indices of the earlier tokens on the key axis.
        """
        ...

    def block(self, segment: Tree, run: Run, start: int, stop: int) -> tuple[jax.Array, jax.Array]:
        """Rows start..stop of one segment against its own keys 0..stop and earlier tokens.

        segment: an entry of `segments`. Returns two arrays, of the own keys and of the earlier
        tokens: [B|1, N|1, rows|1, stop|1] and [B|1, N|1, rows|1, K|1].
        """
        ...

    def dense(self) -> jax.Array:
        """The bias of every pair, [B|1, N|1, T, C + T]."""
        ...


class Inputs(NamedTuple):
    """Arguments of a backend: q (scaled), k, v [B, T, N, H]; valid bool [B, T]."""

    q: Array
    k: Array
    v: Array
    valid: Array
    cached: Cached | None
    bias: Bias | None


class Backend(Protocol):
    """Computes the output [B, T, N, H]."""

    def __call__(self, inputs: Inputs, layout: SegmentLayout, weigh: Weigh, /) -> jax.Array:
        """The output [B, T, N, H]; see `attention.attend`."""
        ...
