"""The benchmark of compressed and full history on two CPU cores.

Histories of 256 to 16,384 events in segments of 128, and the paper's 5 segments x 4 tokens.
Results: `results/bench_cpu/report.md`. With 1,000 events in 5 segments a request takes 8.4 % of
the FLOPs and 20.8 % of the time of full history.
Command:

    python -m jaxrec.benchmark --config=configs/bench_cpu.py --output=results/bench_cpu
"""

from jaxrec.benchmark.grid_config import GridConfig

HISTORIES = (256, 512, 1024, 2048, 4096, 8192, 16384)


def get_config() -> GridConfig:
    """Segments of 128 events; state and window then stay small beside a long history."""
    shapes = ((1000, 5), *((history, history // 128) for history in HISTORIES))
    return GridConfig(
        shapes=shapes,
        tokens=(1, 4),
        batches=(1, 16),
        most_events=16_384,
        seconds=4.0,
        train_longest=1000,
    )
