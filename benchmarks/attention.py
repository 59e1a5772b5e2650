"""Dense against blocked attention, forward and forward + backward, in one run.

    python -m benchmarks.attention --output=results/attention.json
    python -m benchmarks.attention --backend=fused --dtype=bfloat16 --head_width=64   # accelerators

Prints times, XLA's planned peak memory and the largest relative difference of outputs and
gradients. Input transfer is not counted: the arrays already lie on the device. Backends run in
turn, every turn for half a second at least after a call that does not count; how many times faster
one is, is the median over turns of the ratio within a turn.
"""

import argparse
import functools
import re
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxrec.benchmark import timing
from jaxrec.layout import SegmentLayout
from jaxrec.nn.attention import Kind, attend

Program = Callable[..., Any]  # compiled by XLA

BACKENDS = ("blocked", "fused")  # what dense is compared with; on a CPU fused is blocked
LAYOUTS = ("5x(100+4)", "16x(128+4)", "1x(2048+0)")


def parse_layout(text: str) -> SegmentLayout:
    """`16x(128+4)`: 16 segments of 128 items and 4 tokens. Raises ValueError otherwise."""
    match = re.fullmatch(r"(\d+)x\((\d+)\+(\d+)\)", text.replace(" ", ""))
    if not match:
        raise ValueError(f"layout {text!r}: write segments x (items + tokens), as 16x(128+4)")
    count, items, tokens = map(int, match.groups())
    return SegmentLayout(segments=((items, tokens),) * count)


class Compiled(NamedTuple):
    """A backend's programs of (q, k, v, valid): the output; the output and three gradients."""

    forward: Program
    forward_backward: jax.stages.Compiled


def compiled(
    backend: str,
    layout: SegmentLayout,
    kind: Kind,
    inputs: tuple[jax.Array, ...],
    cotangent: jax.Array,
) -> Compiled:
    """Both programs of a backend for inputs (q, k, v, valid)."""

    def forward(q: jax.Array, k: jax.Array, v: jax.Array, valid: jax.Array) -> jax.Array:
        return attend(
            q,
            k,
            v,
            layout,
            valid,
            kind=kind,
            scale=q.shape[-1] ** -0.5,
            normalizer=layout.normalizer,
            backend=backend,
        )

    def forward_backward(
        q: jax.Array, k: jax.Array, v: jax.Array, valid: jax.Array
    ) -> tuple[jax.Array, tuple[jax.Array, ...]]:
        out, pull = jax.vjp(lambda q, k, v: forward(q, k, v, valid), q, k, v)
        return out, pull(cotangent)

    programs = (jax.jit(f).lower(*inputs).compile() for f in (forward, forward_backward))
    return Compiled(*programs)


def measure(
    layout: SegmentLayout,
    kind: Kind,
    *,
    batch: int,
    heads: int,
    head_width: int,
    repeats: int,
    backend: str = "blocked",
    dtype: str = "float32",
    min_turn_s: float = 0.5,
) -> dict[str, Any]:
    """One table row: dense and another backend on the same random inputs (`timing.turns`).

    Keys: times; speedup, the median over turns of dense / the other within a turn, and its
    quartiles; pairs and peak bytes of both; largest relative difference of outputs and gradients.
    """
    shape = (batch, layout.length, heads, head_width)
    keys = jax.random.split(jax.random.key(0), 4)
    q, k, v, cotangent = (jax.random.normal(key, shape, dtype) for key in keys)
    lengths = np.asarray([[n for n, _ in layout.segments]] * batch, np.int32)
    inputs = q, k, v, jnp.asarray(layout.valid(lengths))
    programs = {
        name: compiled(name, layout, kind, inputs, cotangent) for name in ("dense", backend)
    }
    results = [jax.tree.leaves(p.forward_backward(*inputs)) for p in programs.values()]
    worst = max(
        float(jnp.abs(a - b).max() / jnp.abs(a).max())
        for a, b in zip(*jax.tree.map(lambda x: x.astype(jnp.float32), results), strict=True)
    )
    passes = {"forward": 0, "forward+backward": 1}  # names and fields of `Compiled`
    samples = timing.turns(
        {
            f"{name} {key}": functools.partial(program[field], *inputs)
            for name, field in passes.items()
            for key, program in programs.items()
        },
        repeats=repeats,
        min_turn_s=min_turn_s,
        untimed=1,
    )
    faster = {
        name: timing.times_faster(samples[f"{name} dense"], samples[f"{name} {backend}"])
        for name in passes
    }
    return {
        "kind": kind,
        "segments": layout.segments,
        "pairs_dense": layout.pairs("dense"),
        "pairs_blocked": layout.pairs("blocked"),
        "times": {name: timing.summary(values) for name, values in samples.items()},
        "speedup": {name: median for name, (median, *_) in faster.items()},
        "speedup_quartiles": {name: quartiles for name, (_, *quartiles) in faster.items()},
        "peak_bytes": {b: timing.peak_bytes(p.forward_backward) for b, p in programs.items()},
        "largest_relative_difference": worst,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.attention", description=__doc__.split("\n\n")[0]
    )
    parser.add_argument("--layouts", nargs="+", default=list(LAYOUTS), metavar="SxX(n+k)")
    parser.add_argument("--kinds", nargs="+", default=["pointwise", "softmax"])
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--heads", type=int, default=4)
    parser.add_argument("--head_width", type=int, default=32)
    parser.add_argument(
        "--backend", default="blocked", choices=BACKENDS, help="compared with dense (blocked)"
    )
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--output", default="", help="JSON file of the result")
    args = parser.parse_args()
    try:
        layouts = {text: parse_layout(text) for text in args.layouts}
    except ValueError as error:
        parser.error(str(error))
    if unknown := set(args.kinds) - {"pointwise", "softmax"}:
        parser.error(f"kinds {sorted(unknown)}: known are pointwise (HSTU), softmax")
    sizes = {"batch": args.batch, "heads": args.heads, "head_width": args.head_width}
    sizes |= {"backend": args.backend, "dtype": args.dtype}
    rows = []
    header = (
        f"{'layout':>14} {'kind':>10} {'pass':>17} {'dense':>10} {args.backend:>10} {'faster':>7}"
    )
    print(header + f" {'memory':>17} {'difference':>11}", flush=True)
    for text, layout in layouts.items():
        for kind in args.kinds:
            row = measure(layout, kind, **sizes, repeats=args.repeats)
            rows.append({"layout": text, **row})
            memory = " / ".join(f"{size / 1e6:.0f}" for size in row["peak_bytes"].values()) + " MB"
            for name, ratio in row["speedup"].items():
                dense = row["times"][f"{name} dense"]["median_s"] * 1e3
                other = row["times"][f"{name} {args.backend}"]["median_s"] * 1e3
                print(
                    f"{text:>14} {kind:>10} {name:>17} {dense:>7.1f} ms {other:>7.1f} ms "
                    f"{ratio:>6.1f}x {memory:>17} {row['largest_relative_difference']:>11.1e}",
                    flush=True,
                )
    timing.save(timing.report("benchmarks.attention", rows, **sizes), args.output)


if __name__ == "__main__":
    main()
