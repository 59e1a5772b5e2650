"""A whole training step: blocked layout attention against a plain dense mask, in one run.

    python -m benchmarks.step --output=results/step.json

Both steps compute the same loss on the same batch with the same parameters and differ in the
attention backend only. Also prints what attention, loss and optimizer take when each is compiled
alone, as shares of the blocked step, and how XLA's planned memory grows with the catalog.
"""

import argparse
import functools
from collections.abc import Callable
from typing import Literal, TypeAlias

import jax
import jax.numpy as jnp
import optax

from jaxrec.benchmark import timing
from jaxrec.benchmark.workload import random_batch
from jaxrec.config import LossConfig, ModelConfig
from jaxrec.items.table import EMBEDDING, ITEM
from jaxrec.layout import SegmentLayout
from jaxrec.model import recommender
from jaxrec.nn.attention import attend
from jaxrec.objective import full_softmax, losses, sampling
from jaxrec.objective.logits import unit
from jaxrec.types import Batch, ItemVectors, Json, Params, Tree

# (segment size, tokens, segments, recent window, batch): the dense step of the long layout
# keeps 25 GB of attention weights at batch 8, so it is measured at 2
LAYOUTS = {"4x(100+4)+100": (100, 4, 4, 100, 8), "16x(128+4)+128": (128, 4, 16, 128, 2)}


# (params, opt_state, batch, rng) -> (params, opt_state, mean loss)
Step: TypeAlias = Callable[[Params, Tree, Batch, jax.Array], tuple[Params, Tree, jax.Array]]


def make_step(model: recommender.Model, optimizer: optax.GradientTransformation) -> Step:
    """A plain training step: loss, gradient, update."""

    def step(
        params: Params, opt_state: Tree, batch: Batch, rng: jax.Array
    ) -> tuple[Params, Tree, jax.Array]:
        def mean(params: Params) -> jax.Array:
            total, weight, _ = model.loss(params, batch, rng=rng, train=True)
            return total / weight

        loss, grads = jax.value_and_grad(mean)(params)
        updates, opt_state = optimizer.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state, loss

    return step


def loss_of(negatives: int) -> LossConfig:
    """Cosine logits against so many uniform negatives."""
    return LossConfig(
        kind="sampled_softmax",
        similarity="cosine",
        temperature=0.05,
        negatives=negatives,
        sampling="uniform",
    )


def measure(shape: tuple[int, int, int, int], batch_size: int, args: argparse.Namespace) -> Json:
    """One layout: dense and blocked steps in turn with the components of the blocked one."""
    n, k, segments, recent = shape
    layout = SegmentLayout.stream(n, k, segments, recent - n + 1)
    loss_config = loss_of(args.negatives)
    optimizer = optax.adamw(1e-3, weight_decay=0.0)
    rng = jax.random.key(0)
    batch = jax.device_put(random_batch(layout, batch_size, args.catalog))
    steps, memory, models = {}, {}, {}
    for backend in ("dense", "blocked"):
        config = ModelConfig(
            backbone=args.backbone,
            width=args.width,
            layers=args.layers,
            heads=args.heads,
            attention=backend,
        )
        config.hstu.position_bias = config.hstu.time_bias = args.bias
        models[backend] = recommender.build(config, loss_config, layout, args.catalog)
        params = models[backend].init(rng)
        opt_state = optimizer.init(params)
        step = make_step(models[backend], optimizer)
        compiled = jax.jit(step).lower(params, opt_state, batch, rng).compile()
        memory[backend] = timing.peak_bytes(compiled)
        steps[backend] = functools.partial(compiled, params, opt_state, batch, rng)
    components = _components(models["blocked"], params, optimizer, batch, rng, args)
    times = timing.interleaved({**steps, **components}, repeats=args.repeats)
    loss = {b: float(steps[b]()[2]) for b in steps}
    blocked = times["blocked"]["median_s"]
    return {
        "segments": layout.segments,
        "batch": batch_size,
        "times": times,
        "blocked_over_dense": blocked / times["dense"]["median_s"],
        "share_of_blocked": {name: times[name]["median_s"] / blocked for name in components},
        "peak_bytes": memory,
        "loss": loss,
    }


def _components(
    model: recommender.Model,
    params: Params,
    optimizer: optax.GradientTransformation,
    batch: Batch,
    rng: jax.Array,
    args: argparse.Namespace,
) -> dict[str, Callable[[], Tree]]:
    """Forward and backward passes of components of the blocked step, compiled alone."""
    layout, width, heads = model.layout, args.width, args.heads
    users = batch.items.shape[0]
    shape = (users, layout.length, heads, width // heads)
    q, k, v = (jax.random.normal(key, shape) for key in jax.random.split(rng, 3))
    valid = jnp.ones(shape[:2], bool)
    kind: Literal["pointwise", "softmax"] = "pointwise" if args.backbone == "hstu" else "softmax"

    def attention(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        out = attend(q, k, v, layout, valid, kind=kind, normalizer=layout.normalizer)
        return out.sum()

    def all_attention(q: jax.Array, k: jax.Array, v: jax.Array) -> Tree:
        return [jax.grad(attention, (0, 1, 2))(q + i, k, v) for i in range(args.layers)]

    x = jax.random.normal(rng, (users * len(layout.predictors), width))
    targets = jnp.asarray(batch.items)[:, layout.target_slots].reshape(-1)

    def loss(x: jax.Array, table: jax.Array) -> jax.Array:
        ids, log_q = sampling.sample_negatives(rng, args.catalog, args.negatives, None, "uniform")
        contrast = losses.Contrast(
            x=unit(x),
            positives=unit(table[targets]),
            negatives=unit(table[ids]),
            targets=targets,
            negative_ids=ids,
            weights=jnp.ones(targets.shape),
        )
        total, weight = losses.sampled_softmax(
            contrast, log_q=log_q[ids], scale=20.0, false_negative=0.99
        )
        return total / weight

    table = params[ITEM][EMBEDDING]
    grads = jax.tree.map(jnp.ones_like, params)
    opt_state = optimizer.init(params)
    functions = {
        f"attention ({args.layers} layers)": (jax.jit(all_attention), (q, k, v)),
        "loss": (jax.jit(jax.grad(loss, (0, 1))), (x, table)),
        "optimizer": (jax.jit(optimizer.update), (grads, opt_state, params)),
    }
    return {
        name: functools.partial(f.lower(*a).compile(), *a) for name, (f, a) in functions.items()
    }


def loss_memory(args: argparse.Namespace) -> list[Json]:
    """Planned temporary memory of the full softmax's gradient, by catalog and batch."""
    rows = []
    for items, positions in ((20_000, 4_000), (200_000, 4_000), (200_000, 16_000)):

        def loss(x: jax.Array, table: jax.Array, positions: int = positions) -> jax.Array:
            targets = jnp.ones((positions,), jnp.int32)
            return full_softmax.full_softmax(
                x, ItemVectors(table), targets, jnp.ones((positions,))
            )[0]

        shapes = [
            jax.ShapeDtypeStruct((n, args.width), jnp.float32) for n in (positions, items + 1)
        ]
        plan = jax.jit(jax.grad(loss, (0, 1))).lower(*shapes).compile().memory_analysis()
        assert plan is not None
        rows.append(
            {
                "items": items,
                "positions": positions,
                "temporary_bytes": int(plan.temp_size_in_bytes),
                "logits_bytes": 4 * items * positions,
            }
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.step", description=__doc__.split("\n\n")[0]
    )
    parser.add_argument("--backbone", choices=["hstu", "sasrec"], default="hstu")
    parser.add_argument("--layouts", nargs="+", choices=list(LAYOUTS), default=list(LAYOUTS))
    parser.add_argument("--batch", type=int, default=0, help="default: 8, long layout 2")
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--heads", type=int, default=8)
    parser.add_argument("--catalog", type=int, default=20_000)
    parser.add_argument("--negatives", type=int, default=1024)
    parser.add_argument(
        "--bias", action="store_true", help="relative position and time bias (HSTU)"
    )
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--output", default="", help="JSON file of the result")
    args = parser.parse_args()
    rows = []
    for layout in args.layouts:
        *shape, users = LAYOUTS[layout]
        row = measure((shape[0], shape[1], shape[2], shape[3]), args.batch or users, args)
        rows.append({"layout": layout, **row})
        ms = {name: t["median_s"] * 1e3 for name, t in row["times"].items()}
        print(
            f"{layout}: dense {ms['dense']:.0f} ms, blocked {ms['blocked']:.0f} ms, "
            f"ratio {row['blocked_over_dense']:.2f}",
            flush=True,
        )
        for name, share in row["share_of_blocked"].items():
            print(f"    {name}: {ms[name]:.0f} ms, {share:.0%} of the blocked step", flush=True)
    memory = loss_memory(args)
    for line in memory:
        print(
            f"full softmax, {line['items']:,} items x {line['positions']:,} positions: "
            f"{line['temporary_bytes'] / 1e6:.0f} MB planned, all logits would be "
            f"{line['logits_bytes'] / 1e6:.0f} MB"
        )
    facts = {key: value for key, value in vars(args).items() if key not in ("output", "layouts")}
    timing.save(
        timing.report("benchmarks.step", rows, settings=facts, loss_memory=memory), args.output
    )


if __name__ == "__main__":
    main()
