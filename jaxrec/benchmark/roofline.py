"""Peaks of TPU chips, and the least time that a compiled function can take on them."""

from typing import NamedTuple

from jaxrec.types import Json


class Chip(NamedTuple):
    """Peaks of one chip: bfloat16 FLOP/s, HBM bytes, HBM bytes/s, bytes/s over all links.

    Source: cloud.google.com/tpu/docs/system-architecture-tpu-vm (2025).
    """

    flops: float
    memory: float
    bandwidth: float
    network: float


CHIPS = {
    "v4": Chip(275e12, 32 * 2**30, 1228e9, 300e9),
    "v5e": Chip(197e12, 16 * 2**30, 819e9, 200e9),
    "v5p": Chip(459e12, 95 * 2**30, 2765e9, 600e9),
    "v6e": Chip(918e12, 32 * 2**30, 1640e9, 448e9),
}


def roofline(flops: float, plan: Json, chip: Chip, devices: int) -> dict[str, float | str]:
    """Seconds that each resource needs at its peak, the longest of them and its name.

    flops: of one call over all chips; plan: `runtime.plan.describe` of the compiled function.
    The result is a lower bound of the time of a step.
    """
    moved = sum(
        traffic["bytes"] * (2 if kind == "all-reduce" else 1)
        for kind, traffic in plan["collectives"].items()
    )
    seconds = {
        "compute_s": max(flops / devices, plan["xla_flops"]) / chip.flops,
        "memory_s": plan["xla_bytes_accessed"] / chip.bandwidth,
        "network_s": moved / chip.network,
    }
    slowest = max(seconds, key=lambda name: seconds[name])
    return {**seconds, "step_s": seconds[slowest], "bound": slowest.removesuffix("_s")}
