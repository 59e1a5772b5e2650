"""Plots of measured rows: one look, PNG and SVG, by matplotlib (`pip install jaxrec[plot]`)."""

import contextlib
import io
import pathlib
import re
from collections.abc import Iterator
from typing import Any

from jaxrec.errors import ConfigError

COLOURS = ("#1f5fa8", "#d1660b", "#2a8a4a", "#8a4a9e", "#6b6b6b", "#b03a4a", "#0f8a8a", "#9a7b10")
MARKS = "osD^vPX*"
STYLE: dict[Any, Any] = {
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "svg.fonttype": "path",
    "svg.hashsalt": "jaxrec",
    "figure.constrained_layout.use": True,
}


@contextlib.contextmanager
def style() -> Iterator[Any]:
    """matplotlib with the look of all plots, drawing to files alone.

    Raises ConfigError where matplotlib is not installed.
    """
    try:
        import matplotlib
        import matplotlib.figure
        import matplotlib.ticker
    except ImportError as error:
        raise ConfigError("plots need matplotlib: pip install 'jaxrec[plot]'") from error
    with matplotlib.rc_context(STYLE):
        yield matplotlib


def save(figure: Any, folder: pathlib.Path, name: str) -> list[pathlib.Path]:
    """`<name>.png` and `<name>.svg`; the same figure gives the same SVG."""
    png, svg = folder / f"{name}.png", folder / f"{name}.svg"
    with style():
        figure.savefig(png, dpi=110, metadata={"Software": None})
        text = io.StringIO()
        figure.savefig(text, format="svg", metadata={"Date": None})
    svg.write_text(re.sub(r"[ \t]+\n", "\n", text.getvalue()))
    return [png, svg]
