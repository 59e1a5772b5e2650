"""The benchmark in under two minutes on two CPU cores.

The paper's 5 segments x 4 tokens, at two history lengths. The measured grid is `bench_cpu.py`.
Command:

    python -m jaxrec.benchmark --config=configs/bench_quick.py --output=runs/bench_quick
"""

from jaxrec.benchmark.grid_config import GridConfig


def get_config() -> GridConfig:
    return GridConfig(shapes=((500, 5), (1000, 5)), seconds=3.0, train_longest=500)
