"""A training step over long histories in bfloat16, by attention backend: for accelerators.

    python -m benchmarks.long_step --output=results/gpu/long_step.json

HSTU of eight layers, width 512, position and time bias, 2,048 compressed events and a recent
window of 256. All backends compute the same step on the same batch, in turn. Prints positions per
second, the share of the chip's peak (FLOPs of the layout), XLA's planned memory and the loss, in
which backends must agree. A backend whose step does not fit the device is named and left out.
"""

import argparse
import functools
from typing import Any

import jax
import numpy as np
import optax

from benchmarks.step import loss_of, make_step
from jaxrec.benchmark import timing
from jaxrec.benchmark.workload import random_batch
from jaxrec.config import LossConfig, ModelConfig
from jaxrec.layout import SegmentLayout
from jaxrec.model import cost, recommender
from jaxrec.runtime import chips
from jaxrec.types import Json

BACKENDS = ("dense", "blocked", "fused")


def model_of(args: argparse.Namespace, backend: str, loss: LossConfig) -> recommender.Model:
    """The same model for every backend."""
    config = ModelConfig(
        backbone=args.backbone,
        width=args.width,
        layers=args.layers,
        heads=args.heads,
        attention=backend,
        dtype=args.dtype,
        remat=args.remat,
    )
    layout = SegmentLayout.stream(args.segment, args.tokens, args.segments)
    return recommender.build(config, loss, layout, args.catalog)


def measure(args: argparse.Namespace) -> list[Json]:
    """A row for every backend. Raises ValueError where losses differ, and where no step fits."""
    loss = loss_of(args.negatives)
    optimizer = optax.adamw(1e-3, weight_decay=0.0)
    rng = jax.random.key(0)
    steps: dict[str, Any] = {}
    rows: dict[str, Json] = {}
    for backend in args.backends:
        model = model_of(args, backend, loss)
        batch = jax.device_put(random_batch(model.layout, args.batch, args.catalog))
        params = jax.jit(model.init)(rng)
        given = params, optimizer.init(params), batch, rng
        try:
            compiled = jax.jit(make_step(model, optimizer)).lower(*given).compile()
            value = float(compiled(*given)[2])
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            print(f"{backend}: does not fit the device", flush=True)
            continue
        steps[backend] = functools.partial(compiled, *given)
        rows[backend] = {
            "backend": backend,
            "loss": value,
            "peak_bytes": timing.peak_bytes(compiled),
            "positions": args.batch * model.layout.length,
            "flops": args.batch
            * cost.training_flops(model.config, loss, model.layout, args.catalog),
        }
    if not rows:
        raise ValueError("no backend's step fits the device: take a smaller --batch, or --remat")
    losses = [row["loss"] for row in rows.values()]
    if not np.allclose(losses, losses[0], rtol=1e-2):
        raise ValueError(f"losses differ: { {name: row['loss'] for name, row in rows.items()} }")
    peak = chips.peak_flops(jax.devices()[0])
    for backend, times in timing.interleaved(steps, repeats=args.repeats).items():
        row, seconds = rows[backend], times["median_s"]
        row |= {"times": times, "positions_per_s": row["positions"] / seconds}
        row["share_of_peak"] = None if peak is None else row["flops"] / seconds / peak
    return list(rows.values())


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.long_step", description=__doc__.split("\n\n")[0]
    )
    parser.add_argument("--backends", nargs="+", choices=BACKENDS, default=list(BACKENDS))
    parser.add_argument("--backbone", choices=["hstu", "sasrec", "llama"], default="hstu")
    parser.add_argument("--segment", type=int, default=256, help="items of a segment")
    parser.add_argument("--tokens", type=int, default=8)
    parser.add_argument("--segments", type=int, default=8)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--heads", type=int, default=8)
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="bfloat16")
    parser.add_argument("--remat", action="store_true")
    parser.add_argument("--catalog", type=int, default=1_000_000)
    parser.add_argument("--negatives", type=int, default=1024)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--output", default="", help="JSON file of the result")
    args = parser.parse_args()
    rows = measure(args)
    for row in rows:
        share = row["share_of_peak"]
        print(
            f"{row['backend']}: {row['times']['median_s'] * 1e3:.1f} ms, "
            f"{row['positions_per_s']:,.0f} positions/s, "
            + ("" if share is None else f"{share:.1%} of the chip's peak, ")
            + f"{row['peak_bytes'] / 1e9:.2f} GB planned, loss {row['loss']:.4f}",
            flush=True,
        )
    facts = {key: value for key, value in vars(args).items() if key != "output"}
    timing.save(timing.report("benchmarks.long_step", rows, settings=facts), args.output)


if __name__ == "__main__":
    main()
