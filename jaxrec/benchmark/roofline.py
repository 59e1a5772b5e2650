"""Peaks of chips, and the least time that a compiled function can take on them."""

from typing import NamedTuple

from jaxrec.types import Json


class Chip(NamedTuple):
    """Peaks of one chip: bfloat16 FLOP/s, memory bytes, its bytes/s, bytes/s sent over all links.

    network: one direction, half of what data sheets call bidirectional. A v4 is described as two
    devices, one for each of its cores; its figures are those of one.
    """

    flops: float
    memory: float
    bandwidth: float
    network: float


# docs.cloud.google.com/tpu/docs: pages v4, v5e, v5p, v6e (2025)
CHIPS = {
    "v4": Chip(275e12 / 2, 32 * 2**30 / 2, 1228e9 / 2, 300e9 / 2),
    "v5e": Chip(197e12, 16 * 2**30, 819e9, 200e9),
    "v5p": Chip(459e12, 95 * 2**30, 2765e9, 600e9),
    "v6e": Chip(918e12, 32 * 2**30, 1640e9, 400e9),
}
# SXM boards without sparsity: nvidia.com/en-us/data-center/h100 and .../h200; NVLink reaches the
# devices of one machine, or of one NVLink domain
GPUS = {
    "h100": Chip(989e12, 80e9, 3350e9, 450e9),
    "h200": Chip(989e12, 141e9, 4800e9, 450e9),
}
OTHER_CHIPS_NOTE = (
    "FLOPs and bytes of the program compiled for {chip}, at the peaks of another chip: its own "
    "compiler would fuse and pad otherwise"
)


def roofline(flops: float, plan: Json, chip: Chip, devices: int) -> dict[str, float | str]:
    """Seconds that each resource needs at its peak, the longest of them and its name.

    flops: of one call over all chips, by the layout; plan: `runtime.plan.describe` of the compiled
    function. The times:

    - compute_s: FLOPs of the layout, what the step is for;
    - dots_s: FLOPs of the dots in the program, with what is computed again and what the layout
      does not count;
    - memory_s: traffic of the main memory; network_s: bytes that a chip sends.

    step_s is a lower bound of the time of a step. share_of_peak is compute_s / step_s: the model
    FLOPs utilization (MFU) that the step cannot exceed.
    """
    sent = sum(traffic["sent"] for traffic in plan["collectives"].values())
    seconds = {
        "compute_s": flops / devices / chip.flops,
        "dots_s": plan["dot_flops"] / chip.flops,
        "memory_s": plan["memory_traffic"] / chip.bandwidth,
        "network_s": sent / chip.network,
    }
    slowest = max(seconds, key=lambda name: seconds[name])
    step = seconds[slowest]
    return {
        **seconds,
        "step_s": step,
        "bound": slowest.removesuffix("_s"),
        "share_of_peak": seconds["compute_s"] / step if step else 0.0,
    }


def on_other_chips(
    name: str, flops: float, plan: Json, devices: int
) -> dict[str, dict[str, float | str]]:
    """`roofline` of the same counts on every chip but `name`, whose compiler made the program."""
    others = {other: chip for other, chip in (CHIPS | GPUS).items() if other != name}
    return {other: roofline(flops, plan, chip, devices) for other, chip in others.items()}
