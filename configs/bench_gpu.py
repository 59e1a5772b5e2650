"""The benchmark of compressed and full history on one GPU, in bfloat16.

A wider model, larger batches and histories of 256 to 16,384 events. Not measured yet.
Command:

    python -m jaxrec.benchmark --config=configs/bench_gpu.py --output=results/gpu/bench
"""

from jaxrec.benchmark.grid_config import GridConfig

HISTORIES = (256, 512, 1024, 2048, 4096, 8192, 16384)


def get_config() -> GridConfig:
    shapes = ((2560, 5), *((history, max(history // 256, 2)) for history in HISTORIES))
    config = GridConfig(
        shapes=shapes,
        tokens=(1, 4, 16),
        batches=(1, 64),
        most_events=64 * 8192,
        train_batch=32,
        train_longest=4096,
        catalog=100_000,
    )
    config.model.width, config.model.heads, config.model.dtype = 256, 8, "bfloat16"
    return config
