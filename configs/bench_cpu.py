"""The benchmark on two CPU cores: histories 256 to 16,384, and the paper's 5 segments x 4 tokens.

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
