"""Ranking a whole catalog in bounded memory.

Dimension letters: P queries, D width, V items (row 0 of the table is padding and never a
candidate), K results. Scores are dot products; for cosine the caller passes unit rows.
"""

import functools

import jax
import jax.numpy as jnp

from jaxrec.types import PAD, Array


def _chunks(table: Array, chunk: int) -> tuple[jax.Array, int, int]:
    """[n, chunk, D] pieces of the table, padded with rows that are no candidates."""
    rows = table.shape[0]
    chunk = min(chunk, rows)
    pieces = -(-rows // chunk)
    padded = jnp.pad(table, ((0, pieces * chunk - rows), (0, 0)))
    return padded.reshape(pieces, chunk, table.shape[1]), pieces, chunk


def _scores(x: Array, rows: Array) -> jax.Array:
    return jnp.einsum("pd,vd->pv", x, rows, preferred_element_type=jnp.float32)


def _candidates(start: Array, chunk: int, total: int, exclude: Array | None) -> jax.Array:
    """[1 or P, chunk] bool: which items of a chunk may be recommended."""
    ids = start + jnp.arange(chunk)
    allowed = ((ids != PAD) & (ids < total))[None]
    if exclude is None:
        return allowed
    local = exclude - start
    inside = (local >= 0) & (local < chunk) & (exclude != PAD)
    seen = jnp.zeros((exclude.shape[0], chunk + 1), bool)
    rows = jnp.arange(exclude.shape[0])[:, None]
    seen = seen.at[rows, jnp.where(inside, local, chunk)].set(True)
    return allowed & ~seen[:, :chunk]


@functools.partial(jax.jit, static_argnames="chunk")
def rank_of_targets(
    x: Array, table: Array, targets: Array, exclude: Array | None = None, *, chunk: int = 16384
) -> jax.Array:
    """int32 [P]: how many candidates score at least as much as the target (itself not counted).

    Ties count against the model. x: [P, D]; table: [V + 1, D]; targets: int32 [P] in 1..V (0:
    the rank is meaningless); exclude: int32 [P, X] items that are no candidates, 0 = none; the
    target itself always is one. A target whose score is not a number ranks last, and so does
    any target against a candidate whose score is not a number.
    """
    # the target's score comes out of the same matrix product as its rivals': another order of
    # summation would turn equal scores into unequal ones
    pieces, count, chunk = _chunks(table, chunk)
    total = table.shape[0]

    def find(carry: jax.Array, piece: tuple[Array, Array]) -> tuple[jax.Array, None]:
        start, rows = piece
        local = targets - start
        inside = (local >= 0) & (local < chunk)
        scores = _scores(x, rows)
        mine = jnp.take_along_axis(scores, jnp.clip(local, 0, chunk - 1)[:, None], axis=1)[:, 0]
        return jnp.where(inside, mine, carry), None

    starts = jnp.arange(count) * chunk
    target_score, _ = jax.lax.scan(find, jnp.zeros(x.shape[0]), (starts, pieces))

    def beat(carry: jax.Array, piece: tuple[Array, Array]) -> tuple[jax.Array, None]:
        start, rows = piece
        allowed = _candidates(start, chunk, total, exclude)
        other = (start + jnp.arange(chunk))[None] != targets[:, None]
        worse = _scores(x, rows) < target_score[:, None]
        return carry + (allowed & other & ~worse).sum(-1, dtype=jnp.int32), None

    ranks, _ = jax.lax.scan(beat, jnp.zeros(x.shape[0], jnp.int32), (starts, pieces))
    return ranks


@functools.partial(jax.jit, static_argnames=("k", "chunk"))
def top_k(
    x: Array, table: Array, k: int, exclude: Array | None = None, *, chunk: int = 16384
) -> tuple[jax.Array, jax.Array]:
    """Scores and item ids [P, K] of the best candidates, best first, ties by lower id.

    Where fewer than K candidates are left the row ends in score -inf and id 0. Raises
    ValueError when K exceeds the catalog.
    """
    if not 1 <= k < table.shape[0]:
        raise ValueError(f"k={k}: allowed is 1 to the catalog's {table.shape[0] - 1} items")
    pieces, count, chunk = _chunks(table, chunk)
    total = table.shape[0]

    def merge(
        carry: tuple[jax.Array, jax.Array], piece: tuple[Array, Array]
    ) -> tuple[tuple[jax.Array, jax.Array], None]:
        best, ids = carry
        start, rows = piece
        allowed = _candidates(start, chunk, total, exclude)
        scores = jnp.where(allowed, _scores(x, rows), -jnp.inf)
        # a stable selection over (earlier ids, this chunk) keeps ties in id order
        top, where = jax.lax.top_k(scores, min(k, chunk))
        both = jnp.concatenate([best, top], axis=1)
        both_ids = jnp.concatenate([ids, start + where], axis=1)
        best, where = jax.lax.top_k(both, k)
        return (best, jnp.take_along_axis(both_ids, where, axis=1)), None

    empty = jnp.full((x.shape[0], k), -jnp.inf), jnp.zeros((x.shape[0], k), jnp.int32)
    starts = (jnp.arange(count) * chunk).astype(jnp.int32)
    (best, ids), _ = jax.lax.scan(merge, empty, (starts, pieces))
    return best, jnp.where(best == -jnp.inf, PAD, ids)
