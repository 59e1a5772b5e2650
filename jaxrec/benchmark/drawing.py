"""The style of all plots, and how they are written (matplotlib: `pip install jaxrec[plot]`).

Markdown pages show PNG files. The HTML report embeds the same figures as SVG.
"""

import contextlib
import io
import pathlib
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from jaxrec.errors import ConfigError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLOURS = ("#1f5fa8", "#d1660b", "#2a8a4a", "#8a4a9e", "#6b6b6b", "#b03a4a", "#0f8a8a", "#9a7b10")
MARKS = "osD^vPX*"
STYLE = {
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
    """The matplotlib module with `STYLE` set; figures are drawn to files only.

    Raises ConfigError where matplotlib is not installed.
    """
    try:
        import matplotlib
        import matplotlib.figure
        import matplotlib.ticker
    except ImportError as error:
        raise ConfigError("plots need matplotlib: pip install 'jaxrec[plot]'") from error
    with matplotlib.rc_context(STYLE):  # type: ignore[arg-type]
        yield matplotlib


def save(figure: "Figure", file: pathlib.Path) -> None:
    """Writes a figure as PNG."""
    with style():
        figure.savefig(file, dpi=110, metadata={"Software": None})


def svg(figure: "Figure") -> str:
    """The figure as SVG text; the same figure gives the same text."""
    text = io.StringIO()
    with style():
        figure.savefig(text, format="svg", metadata={"Date": None})
    return re.sub(r"[ \t]+\n", "\n", text.getvalue())
