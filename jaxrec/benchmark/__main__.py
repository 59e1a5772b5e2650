"""Measures what compression saves, every method side by side in one run.

    python -m jaxrec.benchmark --config=configs/bench_quick.py --output=runs/bench

Writes rows.json (as it goes; the same command continues), report.json, report.md and plots.
`--config.key=value` overrides a setting. See docs/benchmark.md.
"""

import argparse
import dataclasses
import importlib.metadata
import pathlib
import sys

from jaxrec.benchmark import grid, grid_config, grid_report, timing
from jaxrec.errors import ConfigError
from jaxrec.runtime import huge_pages, workdir


def main() -> None:
    """The program."""
    parser = argparse.ArgumentParser(
        prog="python -m jaxrec.benchmark", description=__doc__.split("\n\n")[0]
    )
    parser.add_argument("--config", required=True, help="FILE.py[:argument], configs/bench_*.py")
    parser.add_argument("--output", required=True, help="folder for rows, report and plots")
    args, overrides = parser.parse_known_args()
    try:
        config = grid_config.load(args.config, overrides)
    except ConfigError as error:
        parser.error(str(error))
    folder = pathlib.Path(args.output)
    rows = grid.run(config, folder)
    facts = timing.report(
        "jaxrec.benchmark",
        rows,
        kind="grid",
        timing=grid.TIMING,
        config=dataclasses.asdict(config),
    )
    names = ("jax", "jaxlib", "flax", "optax", "numpy")
    facts["versions"] = {name: importlib.metadata.version(name) for name in names}
    grid.write_json(folder / "report.json", facts)
    workdir.write_text(folder / "report.md", grid_report.markdown(facts))
    try:
        grid_report.plot(rows, folder)
    except ConfigError as error:  # the figures are useful without plots
        print(f"no plots: {error}", file=sys.stderr)
    print(folder / "report.md")


if __name__ == "__main__":
    huge_pages.start_again()
    main()
