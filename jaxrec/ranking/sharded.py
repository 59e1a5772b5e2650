"""A catalog whose rows are split over `mesh.model`: lists, ranks and losses without gathering it.

Every device scores its own rows, in chunks; what travels is a list or a count per query. Shapes
and conventions are those of `retrieval`: `x` [P, D] queries, `table` [R, D] with row 0 padding
and R >= V + 1 (rows behind V are no candidates), R divisible by `mesh.model`; or `Made`, where
vectors are made of ids. Queries are split over the other axes where P divides by them.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec

from jaxrec.ranking import retrieval
from jaxrec.types import PAD, Array

AXIS = "model"
LOWEST = -1e30  # log of nothing: finite, so that differences of two stay numbers
Vectors = Callable[[Any, jax.Array], jax.Array]


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["params"],
    meta_fields=["num_items", "vectors"],
)
@dataclasses.dataclass(frozen=True)
class Made:
    """A catalog without a table: vectors(params, ids int32 [C]) -> [C, D] makes a chunk of it.

    Every device scores ids of its own; params are copied to all.
    """

    params: Any
    num_items: int
    vectors: Vectors

    @property
    def shape(self) -> tuple[int]:
        """Rows of the table that is not there, padding included."""
        return (self.num_items + 1,)

    def rows(self, mesh: Mesh) -> jax.Array:
        """float32 [R, 0]: no numbers, but as many rows as the table would have on a mesh."""
        height = -(-(self.num_items + 1) // mesh.shape[AXIS]) * mesh.shape[AXIS]
        return jnp.zeros((height, 0))

    def of_rows(self, params: Any, rows: jax.Array, ids: jax.Array) -> jax.Array:
        return self.vectors(params, jnp.where(ids <= self.num_items, ids, PAD))


class _Opened(NamedTuple):
    """Either kind of catalog as rows [R, W] that `make(params, rows, ids)` turns into vectors."""

    rows: Array
    params: Any
    make: Callable[[Any, jax.Array, jax.Array], jax.Array]

    @classmethod
    def of(cls, table: Array | Made, vectors: Vectors | None, params: Any, mesh: Mesh) -> "_Opened":
        if isinstance(table, Made):
            return cls(table.rows(mesh), table.params, table.of_rows)
        if vectors is None:
            return cls(table, None, lambda params, rows, ids: rows)
        return cls(table, params, lambda params, rows, ids: vectors(params, rows))

    def with_bonus(self, x: Array, own: retrieval.Own | None) -> Any:
        """As `retrieval.with_bonus`: rows may be of another width than vectors."""
        if own is None:
            return x, None
        width = x.shape[-1] - own.features.shape[-1]
        return retrieval.with_bonus(x, x[:, :width], own)


def top_k(
    x: Array,
    table: Array | Made,
    k: int,
    exclude: Array | None = None,
    own: retrieval.Own | None = None,
    *,
    mesh: Mesh,
    num_items: int,
    chunk: int = 16384,
    vectors: Vectors | None = None,
    params: Any = None,
) -> tuple[jax.Array, jax.Array]:
    """As `retrieval.top_k`: scores float32 [P, K] and ids int32 [P, K], best first.

    vectors: (params, rows [C, W]) -> [C, D] makes item vectors of table rows, chunk by chunk
    (a projected or normalised copy of the table may not fit); default: rows are vectors.
    """
    if not 1 <= k <= num_items:
        raise ValueError(f"k={k}: the catalog allows 1 to {num_items}")
    opened = _Opened.of(table, vectors, params, mesh)
    x, bonus = opened.with_bonus(x, own)

    def local(
        x: jax.Array, exclude: Any, bonus: Any, part: jax.Array, params: Any
    ) -> tuple[jax.Array, jax.Array]:
        def merge(best: Any, scores: jax.Array, ids: jax.Array, allowed: jax.Array) -> Any:
            scores = jnp.where(allowed & ~jnp.isnan(scores), scores, -jnp.inf)
            scores, columns = jax.lax.top_k(scores, min(k, scores.shape[1]))
            return _best(k, (best[0], scores), (best[1], ids[columns]))

        empty = jnp.full((x.shape[0], k), -jnp.inf), jnp.zeros((x.shape[0], k), jnp.int32)
        make = functools.partial(opened.make, params)
        find = _scores_of(x, part, exclude, bonus, chunk, num_items, make)
        scores, ids = _over_rows(merge, empty, part, chunk, find)
        # shards are in the order of their ids, so ties still go to the lower one
        parts = jax.lax.all_gather((scores, ids), AXIS)
        scores, ids = _best(k, tuple(parts[0]), tuple(parts[1]))
        return scores, jnp.where(jnp.isneginf(scores), PAD, ids)

    return _mapped(local, mesh, (x, exclude, bonus), opened.rows, opened.params)


def rank_of_targets(
    x: Array,
    table: Array | Made,
    targets: Array,
    exclude: Array | None = None,
    own: retrieval.Own | None = None,
    *,
    mesh: Mesh,
    num_items: int,
    chunk: int = 16384,
    vectors: Vectors | None = None,
    params: Any = None,
) -> jax.Array:
    """As `retrieval.rank_of_targets`: int32 [P], ties and NaN count against the model.

    vectors, params: as in `top_k`.
    """
    opened = _Opened.of(table, vectors, params, mesh)
    x, bonus = opened.with_bonus(x, own)

    def local(
        x: jax.Array, targets: Any, exclude: Any, bonus: Any, part: jax.Array, params: Any
    ) -> jax.Array:
        make = functools.partial(opened.make, params)
        every = _scores_of(x, part, None, bonus, chunk, num_items, make)
        candidates = _scores_of(x, part, exclude, bonus, chunk, num_items, make)

        def find(found: jax.Array, scores: jax.Array, ids: jax.Array, allowed: jax.Array) -> Any:
            hit = allowed & (ids[None, :] == targets[:, None])
            return found + jnp.sum(jnp.where(hit, scores, 0.0), axis=1)

        def count(total: jax.Array, scores: jax.Array, ids: jax.Array, allowed: jax.Array) -> Any:
            other = allowed & (ids[None, :] != targets[:, None])
            better = other & ~(scores < reached[:, None])
            return total + jnp.sum(better, axis=1, dtype=jnp.int32)

        # the target's score is computed inside its chunk: equal vectors then tie exactly
        nothing = jnp.zeros(x.shape[:1], jnp.float32)
        reached = jax.lax.psum(_over_rows(find, nothing, part, chunk, every), AXIS)
        better = _over_rows(count, jnp.zeros_like(targets), part, chunk, candidates)
        return jax.lax.psum(better, AXIS)

    queries = (x, jnp.asarray(targets, jnp.int32), exclude, bonus)
    return _mapped(local, mesh, queries, opened.rows, opened.params)


def full_softmax(
    x: Array,
    table: Array,
    targets: Array,
    weights: Array,
    *,
    mesh: Mesh,
    num_items: int,
    scale: Array | float = 1.0,
    chunk: int = 1024,
    vocab_chunk: int = 16384,
) -> tuple[jax.Array, jax.Array]:
    """As `losses.full_softmax`: (sum, weight) of the cross entropy against the whole catalog.

    Positions [P] are split over all axes; within a group along `mesh.model` every device
    compares the group's positions with its own rows, and normalisers and positive logits are
    summed (vocabulary-parallel, as in Megatron-LM, arXiv 1909.08053, section 3). `chunk`
    positions meet `vocab_chunk` rows at a time, again in the backward pass: memory is that of one
    such block and the gradient of the table's own part. P must divide by the devices.
    """
    if x.shape[0] % mesh.size or table.shape[0] % mesh.shape[AXIS]:
        raise ValueError(
            f"{x.shape[0]} positions and {table.shape[0]} rows: {mesh.size} devices must divide "
            f"the first, mesh.model={mesh.shape[AXIS]} the second"
        )
    others = tuple(axis for axis in mesh.axis_names if axis != AXIS)
    weights = jnp.where(targets == PAD, 0.0, jnp.asarray(weights, jnp.float32))
    weights = jax.lax.stop_gradient(weights)

    def own(
        x: jax.Array, targets: jax.Array, weights: jax.Array, part: jax.Array, scale: Any
    ) -> Any:
        x, targets, weights = (
            jax.lax.all_gather(a, AXIS, tiled=True) for a in (x, targets, weights)
        )
        x = x.astype(jnp.float32) * scale
        height, size = part.shape[0], min(chunk, x.shape[0])
        rows = min(vocab_chunk, height)
        blocks = jnp.pad(part, ((0, -height % rows), (0, 0))).reshape(-1, rows, part.shape[1])
        first = jax.lax.axis_index(AXIS) * height
        local = jnp.arange(blocks.shape[0] * rows).reshape(-1, rows)
        allowed = (local < height) & (first + local > PAD) & (first + local <= num_items)

        @jax.checkpoint
        def block(x: jax.Array, total: jax.Array, given: Any) -> tuple[jax.Array, None]:
            vectors, allowed = given
            logits = jnp.where(allowed[None, :], x @ vectors.astype(jnp.float32).T, -jnp.inf)
            top = jax.lax.stop_gradient(jnp.max(logits, axis=1))
            safe = jnp.where(jnp.isfinite(top), top, 0.0)
            return jnp.logaddexp(total, _log_sum(logits, safe)), None

        @jax.checkpoint
        def some(given: Any) -> jax.Array:
            x, targets, weights = given
            start = jnp.full_like(x[:, 0] + part[0, 0], LOWEST)
            normaliser, _ = jax.lax.scan(functools.partial(block, x), start, (blocks, allowed))
            top = jax.lax.pmax(jax.lax.stop_gradient(normaliser), AXIS)
            normaliser = top + jnp.log(jax.lax.psum(jnp.exp(normaliser - top), AXIS))
            place = targets - first
            here = (place >= 0) & (place < height)
            positive = part[jnp.where(here, place, 0)].astype(jnp.float32)
            positive = jnp.where(here, jnp.sum(x * positive, axis=1), 0.0)
            apart = normaliser - jax.lax.psum(positive, AXIS)
            return jnp.sum(jnp.where(weights != 0, weights * apart, 0.0))

        padding = -x.shape[0] % size
        cut = jax.tree.map(
            lambda a: jnp.pad(a, ((0, padding),) + ((0, 0),) * (a.ndim - 1)).reshape(
                -1, size, *a.shape[1:]
            ),
            (x, targets, weights),
        )
        summed = jnp.sum(jax.lax.map(some, cut))
        # the sum is the same along `model`; the mean says so to the compiler
        return jax.lax.pmean(jax.lax.psum(summed, others), AXIS)

    everywhere, split = PartitionSpec(), PartitionSpec(mesh.axis_names)
    total = jax.shard_map(
        own,
        mesh=mesh,
        in_specs=(split, split, split, PartitionSpec(AXIS), everywhere),
        out_specs=everywhere,
    )(x, targets, weights, table, jnp.asarray(scale, jnp.float32))
    return total, jnp.sum(weights)


def _log_sum(logits: jax.Array, top: jax.Array) -> jax.Array:
    """[C] log of the sum of exp(logits); `LOWEST` where no logit is finite."""
    mass = jnp.sum(jnp.exp(logits - top[:, None]), axis=1)
    some = mass > 0
    return jnp.where(some, top + jnp.log(jnp.where(some, mass, 1.0)), LOWEST)


def _best(k: int, scores: tuple[Any, ...], ids: tuple[Any, ...]) -> tuple[jax.Array, jax.Array]:
    """The k best of lists [P, _]; of equal scores those that come first."""
    both, named = jnp.concatenate(scores, axis=1), jnp.concatenate(ids, axis=1)
    best, columns = jax.lax.top_k(both, k)
    return best, jnp.take_along_axis(named, columns, axis=1)


def _scores_of(
    x: jax.Array,
    part: jax.Array,
    exclude: Any,
    bonus: Any,
    chunk: int,
    num_items: int,
    make: Callable[[jax.Array, jax.Array], jax.Array],
) -> Any:
    """Chunk number -> scores [P, C], ids [C] and candidates [1 or P, C] of this device's rows."""
    height = min(chunk, part.shape[0])
    offset = jax.lax.axis_index(AXIS) * part.shape[0]

    def find(index: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        start = jnp.minimum(index * height, part.shape[0] - height)
        local = start + jnp.arange(height)
        ids = (offset + local).astype(jnp.int32)
        rows = jax.lax.dynamic_slice_in_dim(part, start, height)
        # the last chunk starts early enough to be whole; rows it shares do not count again
        allowed = ((local >= index * height) & (ids > PAD) & (ids <= num_items))[None, :]
        scores = jnp.einsum(
            "pd,vd->pv",
            x.astype(jnp.float32),
            make(rows, ids).astype(jnp.float32),
            precision=jax.lax.Precision.HIGHEST,
        )
        if exclude is not None:
            seen = jnp.zeros(scores.shape, bool)
            seen = seen.at[retrieval.places(exclude, ids[0], height)].set(True, mode="drop")
            allowed = allowed & ~seen
        if bonus is not None:
            where = retrieval.places(bonus[0], ids[0], height)
            scores = scores.at[where].add(bonus[1], mode="drop")
        return scores, ids, allowed

    return find


def _over_rows(step: Any, carry: Any, part: jax.Array, chunk: int, find: Any) -> Any:
    """Folds `step(carry, scores [P, C], ids [C], allowed [1 or P, C])` over a device's chunks."""
    chunks = -(-part.shape[0] // min(chunk, part.shape[0]))
    return jax.lax.fori_loop(0, chunks, lambda index, c: step(c, *find(index)), carry)


def _mapped(function: Any, mesh: Mesh, queries: tuple[Any, ...], table: Array, params: Any) -> Any:
    """`function(queries..., rows of the table, params)` on every device."""
    if table.shape[0] % mesh.shape[AXIS]:
        raise ValueError(
            f"table has {table.shape[0]} rows: mesh.model={mesh.shape[AXIS]} must divide them"
        )
    others = tuple(axis for axis in mesh.axis_names if axis != AXIS)
    groups = mesh.size // mesh.shape[AXIS]
    split = PartitionSpec(others) if queries[0].shape[0] % groups == 0 else PartitionSpec()
    return jax.shard_map(
        function,
        mesh=mesh,
        in_specs=(*[split] * len(queries), PartitionSpec(AXIS), PartitionSpec()),
        out_specs=split,
        check_vma=False,
    )(*queries, table, params)
