"""The full softmax over a catalog whose rows are split over `mesh.model`, never gathered."""

import functools

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, Mesh, PartitionSpec

from jaxrec.objective.chunked import SumWeight
from jaxrec.objective.full_softmax import with_bias
from jaxrec.runtime.mesh import MODEL
from jaxrec.types import PAD, Array, ItemVectors

LOWEST = -1e30  # log of nothing: finite, so that differences of two stay numbers


def full_softmax(
    x: Array,
    items: ItemVectors,
    targets: Array,
    weights: Array,
    *,
    mesh: Mesh | AbstractMesh,
    num_items: int,
    scale: Array | float = 1.0,
    chunk: int = 1024,
    vocab_chunk: int = 16384,
) -> SumWeight:
    """As `full_softmax.full_softmax`: (sum, weight) of the cross entropy against the whole catalog.

    Positions [P] are split over all axes; within a group along `mesh.model` every device
    compares the group's positions with its own rows, and normalizers and positive logits are
    summed (vocabulary-parallel, as in Megatron-LM, arXiv 1909.08053, section 3). `chunk`
    positions meet `vocab_chunk` rows at a time, again in the backward pass: memory is that of one
    such block and the gradient of the device's own rows.

    x: [P, D]; items: [R, D], R >= V + 1, rows behind `num_items` are no candidates. Raises
    ValueError when the devices do not divide P or `mesh.model` does not divide R.
    """
    x, table = with_bias(x, items)
    if x.shape[0] % mesh.size or table.shape[0] % mesh.shape[MODEL]:
        raise ValueError(
            f"{x.shape[0]} positions and {table.shape[0]} rows: {mesh.size} devices must divide "
            f"the first, mesh.model={mesh.shape[MODEL]} the second"
        )
    other_axes = tuple(axis for axis in mesh.axis_names if axis != MODEL)
    weights = jnp.where(targets == PAD, 0.0, jnp.asarray(weights, jnp.float32))
    weights = jax.lax.stop_gradient(weights)

    def local_sum(
        x: Array, targets: Array, weights: Array, shard: Array, scale: Array
    ) -> jax.Array:
        x, targets, weights = (
            jax.lax.all_gather(a, MODEL, tiled=True) for a in (x, targets, weights)
        )
        x = x.astype(jnp.float32) * scale
        height, size = shard.shape[0], min(chunk, x.shape[0])
        rows = min(vocab_chunk, height)
        blocks = jnp.pad(shard, ((0, -height % rows), (0, 0))).reshape(-1, rows, shard.shape[1])
        first = jax.lax.axis_index(MODEL) * height
        local_rows = jnp.arange(blocks.shape[0] * rows).reshape(-1, rows)
        ids = first + local_rows
        allowed = (local_rows < height) & (ids > PAD) & (ids <= num_items)

        @jax.checkpoint
        def block(
            x: jax.Array, total: jax.Array, candidates: tuple[jax.Array, jax.Array]
        ) -> tuple[jax.Array, None]:
            vectors, allowed = candidates
            logits = jnp.where(allowed[None, :], x @ vectors.astype(jnp.float32).T, -jnp.inf)
            top = jax.lax.stop_gradient(jnp.max(logits, axis=1))
            safe = jnp.where(jnp.isfinite(top), top, 0.0)
            return jnp.logaddexp(total, _log_sum(logits, safe)), None

        @jax.checkpoint
        def chunk_sum(positions: tuple[jax.Array, jax.Array, jax.Array]) -> jax.Array:
            x, targets, weights = positions
            start = jnp.full_like(x[:, 0] + shard[0, 0], LOWEST)
            normalizer, _ = jax.lax.scan(functools.partial(block, x), start, (blocks, allowed))
            top = jax.lax.pmax(jax.lax.stop_gradient(normalizer), MODEL)
            normalizer = top + jnp.log(jax.lax.psum(jnp.exp(normalizer - top), MODEL))
            local_targets = targets - first
            is_local = (local_targets >= 0) & (local_targets < height)
            positive = shard[jnp.where(is_local, local_targets, 0)].astype(jnp.float32)
            positive = jnp.where(is_local, jnp.sum(x * positive, axis=1), 0.0)
            cross_entropy = normalizer - jax.lax.psum(positive, MODEL)
            return jnp.sum(jnp.where(weights != 0, weights * cross_entropy, 0.0))

        padding = -x.shape[0] % size
        chunks = jax.tree.map(
            lambda a: jnp.pad(a, ((0, padding),) + ((0, 0),) * (a.ndim - 1)).reshape(
                -1, size, *a.shape[1:]
            ),
            (x, targets, weights),
        )
        summed = jnp.sum(jax.lax.map(chunk_sum, chunks))
        # the sum is the same along `model`; the mean says so to the compiler
        return jax.lax.pmean(jax.lax.psum(summed, other_axes), MODEL)

    everywhere, split = PartitionSpec(), PartitionSpec(mesh.axis_names)
    total = jax.shard_map(
        local_sum,
        mesh=mesh,
        in_specs=(split, split, split, PartitionSpec(MODEL), everywhere),
        out_specs=everywhere,
    )(x, targets, weights, table, jnp.asarray(scale, jnp.float32))
    return total, jnp.sum(weights)


def _log_sum(logits: jax.Array, top: jax.Array) -> jax.Array:
    """[C] log of the sum of exp(logits); `LOWEST` where no logit is finite."""
    mass = jnp.sum(jnp.exp(logits - top[:, None]), axis=1)
    is_positive = mass > 0
    return jnp.where(is_positive, top + jnp.log(jnp.where(is_positive, mass, 1.0)), LOWEST)
