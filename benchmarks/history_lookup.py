"""Scores that count repeats: every negative followed through every history, or those that occur.

    python -m benchmarks.history_lookup --output=results/history_lookup.json

`walk` is the plain computation: the counts of all N shared negatives are carried from event to
event for every user. `lookup` is `jaxrec.items.repeats.candidate_bonus`. Both are timed in turn,
forward and backward, alone and inside a training step of configs/completejourney_hstu.py on
made-up histories. Histories and negatives come from a catalog with popular and rare items; 40% of
the events are repeats (`results/data_completejourney.json`).
"""

import argparse
from collections.abc import Callable
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.sparse import Runner
from configs import completejourney_hstu
from jaxrec.benchmark import timing
from jaxrec.items import repeats
from jaxrec.items.repeats import HalfLives
from jaxrec.objective import sampling
from jaxrec.types import PAD, Array, Json, Tree

Bonus = Callable[[Array, Array, Array, Array, HalfLives], jax.Array]
DAY = 86_400


def walk(
    gates: Array, items: Array, times: Array, candidates: Array, half_lives: HalfLives
) -> jax.Array:
    """As `repeats.candidate_bonus`, with [B, N] work for every event."""
    clock = jax.lax.cummax(jnp.where(items != PAD, times, 0), axis=1)
    elapsed = jnp.diff(clock, axis=1, prepend=clock[:, :1])
    decay = jnp.swapaxes(half_lives.decay((items != PAD).astype(jnp.int32), elapsed), 0, 1)

    def scan(
        combine: Callable[[list[jax.Array], jax.Array], jax.Array], weights: jax.Array
    ) -> jax.Array:
        def step(
            counts: list[jax.Array], event: tuple[jax.Array, ...]
        ) -> tuple[list[jax.Array], jax.Array]:
            item, factors, weight = event
            exists = (item != PAD)[:, None]
            hit = ((item[:, None] == candidates[None, :]) & exists).astype(jnp.float32)
            counts = [count * factors[:, k, None] + hit for k, count in enumerate(counts)]
            return counts, combine([jnp.log(1 + count) for count in counts], weight)

        zeros = jnp.zeros((items.shape[0], candidates.shape[0]), jnp.float32)
        events = jnp.asarray(items).T, decay, jnp.swapaxes(weights, 0, 1)
        _, combined = jax.lax.scan(step, [zeros] * half_lives.number, events)
        return jnp.swapaxes(combined, 0, 1)

    def weigh(features: list[jax.Array], gate: jax.Array) -> jax.Array:
        return jnp.sum(jnp.stack([gate[:, k, None] * f for k, f in enumerate(features)]), axis=0)

    def reduce(features: list[jax.Array], weight: jax.Array) -> jax.Array:
        return jnp.stack([jnp.sum(f * weight, axis=-1) for f in features], axis=-1)

    bonus = jax.custom_vjp(lambda gates: scan(weigh, gates))
    bonus.defvjp(
        lambda gates: (scan(weigh, gates), None), lambda _, cotangent: (scan(reduce, cotangent),)
    )
    return bonus(jnp.asarray(gates))


METHODS: dict[str, Bonus] = {"walk": walk, "lookup": repeats.candidate_bonus}


def popularity(catalog: int) -> np.ndarray:
    """Made-up events per item, [V + 1]: a tenth of the items has 70% of the events."""
    counts = 1e6 / np.arange(1, catalog + 2) ** 0.9
    counts[PAD] = 0
    return counts


def histories(args: argparse.Namespace, events: int) -> tuple[np.ndarray, np.ndarray]:
    """Items and times int32 [B, M]: baskets of a few events, 40% of the events repeats."""
    rng = np.random.default_rng(0)
    counts = popularity(args.catalog)
    shape = args.batch, events
    items = rng.choice(args.catalog + 1, shape, p=counts / counts.sum())
    for m in range(1, events):
        earlier = items[np.arange(args.batch), rng.integers(0, m, args.batch)]
        items[:, m] = np.where(rng.random(args.batch) < 0.4, earlier, items[:, m])
    times = np.sort(rng.integers(0, 300, shape), axis=1) * DAY
    return items.astype(np.int32), times.astype(np.int32)


def kernel(args: argparse.Namespace) -> Json:
    """Forward and backward alone: values, gradients, times."""
    config = completejourney_hstu.get_config()
    half_lives = HalfLives.of(config.model)
    items, times = histories(args, args.events)
    counts = jnp.asarray(popularity(args.catalog))
    draw, gate, pulled = jax.random.split(jax.random.key(1), 3)
    candidates, _ = sampling.sample_negatives(
        draw, args.catalog, args.negatives, counts, "popularity"
    )
    gates = jax.random.normal(gate, (*items.shape, half_lives.number))
    cotangent = jax.random.normal(pulled, (*items.shape, args.negatives))

    def both(bonus: Bonus) -> Callable[[], Tree]:
        def run(
            gates: Array, items: Array, times: Array, candidates: Array, cotangent: Array
        ) -> Tree:
            value, pull = jax.vjp(
                lambda gates: bonus(gates, items, times, candidates, half_lives), gates
            )
            return value, pull(cotangent)[0]

        inputs = jax.device_put((gates, items, times, candidates, cotangent))
        compiled = jax.jit(run).lower(*inputs).compile()
        return lambda: compiled(*inputs)

    runs = {name: both(bonus) for name, bonus in METHODS.items()}
    results = {name: run() for name, run in runs.items()}
    differences = [
        float(jnp.max(jnp.abs(a - b)) / jnp.max(jnp.abs(a)))
        for a, b in zip(results["walk"], results["lookup"], strict=True)
    ]
    occurs = (items[:, :, None] == np.asarray(candidates)).any(axis=1).sum(axis=1)
    return {
        "what": "forward + backward",
        "negatives_in_history": {"mean": float(occurs.mean()), "max": int(occurs.max())},
        "largest_relative_difference": dict(zip(("value", "gradient"), differences, strict=True)),
        **compared(runs, args.repeats),
    }


def training_step(args: argparse.Namespace) -> Json:
    """The recipe's whole step."""
    runs: dict[str, Callable[[], Tree]] = {}
    for name, bonus in METHODS.items():
        config = completejourney_hstu.get_config()
        config.train.batch_size, config.loss.negatives = args.batch, args.negatives
        config.mesh.data = 1
        with mock.patch.object(repeats, "candidate_bonus", bonus):
            runner = Runner(config, args.catalog)
        batch = runner.batch
        made_up = histories(args, batch.items.shape[1])
        items, times = jax.device_put(made_up, jnp.asarray(batch.items).sharding)
        runner.batch = batch._replace(items=items, times=times)
        runs[name] = runner
    return {"what": "training step", **compared(runs, args.repeats)}


def compared(runs: dict[str, Callable[[], Tree]], repeats_: int) -> Json:
    """Times in turn and how many times faster the lookup is."""
    samples = timing.turns(runs, repeats=repeats_)
    faster = timing.times_faster(samples["walk"], samples["lookup"])
    return {
        "times": {name: timing.summary(values) for name, values in samples.items()},
        "times_faster": dict(zip(("median", "low", "high"), faster, strict=True)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.history_lookup", description=__doc__.split("\n\n")[0]
    )
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--events", type=int, default=500, help="of a history; alone")
    parser.add_argument("--negatives", type=int, default=1024)
    parser.add_argument("--catalog", type=int, default=28_000)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument(
        "--step", action=argparse.BooleanOptionalAction, default=True, help="the whole step too"
    )
    parser.add_argument("--output", default="", help="JSON file of the result")
    args = parser.parse_args()
    rows = []
    for measure in (kernel, training_step) if args.step else (kernel,):
        row = measure(args)
        ms = {name: t["median_s"] * 1e3 for name, t in row["times"].items()}
        print(
            f"{row['what']}: walk {ms['walk']:.1f} ms, lookup {ms['lookup']:.1f} ms, "
            f"{row['times_faster']['median']:.1f} times faster",
            flush=True,
        )
        rows.append(row)
    facts = {key: value for key, value in vars(args).items() if key != "output"}
    timing.save(timing.report("benchmarks.history_lookup", rows, settings=facts), args.output)


if __name__ == "__main__":
    main()
