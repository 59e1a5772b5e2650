"""Figures of `results/` as the documents print them."""

import json
import pathlib

ROOT = pathlib.Path(__file__).parents[2]
RESULTS = ROOT / "results"
README = ROOT / "README.md"


def load(name):
    return json.loads((RESULTS / name).read_text())


def with_interval(row, key, digits):
    mean, low, high = (row[key + end] for end in ("", "_low", "_high"))
    return f"{mean:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"


def share(row, metric):
    """The share of the gap that is closed, with its interval."""
    mean, low, high = (row[f"{metric}_closed{end}"] for end in ("", "_low", "_high"))
    return f"{mean:.0%} [{low:.0%}, {high:.0%}]"
