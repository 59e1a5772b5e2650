"""Blocks as one self-contained HTML page: style and plots are embedded, there is no script."""

import html
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import assert_never

from jaxrec.benchmark.drawing import COLOURS
from jaxrec.experiments import blocks as doc
from jaxrec.experiments.blocks import Block

# the plots' colours on a dark ground
BRIGHT = ("#6ea8ec", "#f0924a", "#5cc281", "#c08ad6", "#a9a9a9", "#ea7688", "#3fc4c4", "#d0b13c")
STYLE = (pathlib.Path(__file__).parent / "page.css").read_text()
LONG = 48  # characters of a cell that breaks into lines
POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"


def page(blocks: Sequence[Block], plots: Mapping[str, str]) -> str:
    """The page. plots: SVG text of every picture, by the file that `Pictures` names."""
    title = next(b.text for b in blocks if isinstance(b, doc.Heading) and b.level == 1)
    links = "".join(
        f'<li><a href="#{h.anchor}">{_inline(h.text)}</a></li>' for h in doc.sections(blocks)
    )
    cut = next((i for i, b in enumerate(blocks) if isinstance(b, doc.Contents)), 0)
    header, body = (
        "\n".join(_block(b, plots) for b in half) for half in (blocks[:cut], blocks[cut:])
    )
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy" content="{POLICY}">
<title>{html.escape(title)}</title>
<style>
{_variables(COLOURS)}
@media screen and (prefers-color-scheme: dark) {{ {_variables(BRIGHT)} }}
{STYLE}</style>
</head>
<body>
<header>
{header}
</header>
<nav aria-label="Contents"><p>Contents</p><ul>{links}</ul></nav>
<main>
{body}
</main>
</body>
</html>
"""


def _variables(colours: Sequence[str]) -> str:
    return ":root { " + " ".join(f"--c{i}: {c};" for i, c in enumerate(colours)) + " }"


def _block(block: Block, plots: Mapping[str, str]) -> str:
    match block:
        case doc.Heading():
            return f'<h{block.level} id="{block.anchor}">{_interval(block.text)}</h{block.level}>'
        case doc.Text():
            return f"<p{' class=lead' if block.lead else ''}>{_inline(block.text)}</p>"
        case doc.Code():
            return f'<pre tabindex="0"><code>{html.escape(block.text)}</code></pre>'
        case doc.Grid():
            return _grid(block)
        case doc.Pictures():
            shown = "".join(
                f'<figure role="img" aria-label="{html.escape(caption)}">'
                f"{picture(plots[file], file)}</figure>"
                for file, caption in block.plots
            )
            return f'<div class="plots">{shown}</div>'
        case doc.Figures():
            tiles = "".join(
                f"<li><b>{_inline(number)}</b><span>{_inline(label)}</span>"
                f"<small>{_inline(source)}</small></li>"
                for number, label, source in block.tiles
            )
            return f'<ul class="figures">{tiles}</ul>'
        case doc.Contents():
            return ""  # the page has a navigation of its own
        case _:
            assert_never(block)


def _grid(grid: doc.Grid) -> str:
    side = [_side([line[i] for line in grid.lines]) for i in range(len(grid.heads))]
    head = "".join(
        f'<th scope="col"{s}>{_inline(h)}</th>' for h, s in zip(grid.heads, side, strict=True)
    )
    lines = []
    for line in grid.lines:
        first, *rest = [_interval(cell) for cell in line]
        cells = "".join(f"<td{s}>{c}</td>" for c, s in zip(rest, side[1:], strict=True))
        lines.append(f'<tr><th scope="row">{first}</th>{cells}</tr>')
    return (
        '<div class="scroll" tabindex="0" role="region" aria-label="table"><table>'
        f"<thead><tr>{head}</tr></thead><tbody>{''.join(lines)}</tbody></table></div>"
    )


def _side(column: Sequence[str]) -> str:
    """The class of a column: numbers are right-aligned, long texts break."""
    if max(map(len, column), default=0) > LONG:
        return ' class="wide"'
    return ' class="n"' if all(re.match(r"[-+]?\d|$", cell) for cell in column) else ""


def _interval(cell: str) -> str:
    return re.sub(r"(\[[^\]]*\])", r"<small>\1</small>", _inline(cell))


def _inline(text: str) -> str:
    text = re.sub(r"`([^`]+)`", r"<code>\1</code>", html.escape(text, quote=False))
    return re.sub(r"(\d) %", "\\1\N{NO-BREAK SPACE}%", text)


def picture(svg: str, name: str) -> str:
    """matplotlib's SVG as part of the page: ids start with `name`, colours are the page's."""
    name = re.sub(r"\W+", "-", name).strip("-")
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r"<!--.*?-->\s*", "", svg, flags=re.DOTALL)
    svg = re.sub(r'\bid="', f'id="{name}-', svg)
    svg = re.sub(r'(url\(|href=")#', rf"\1#{name}-", svg)
    start, rest = svg.split(">", 1)
    start = re.sub(r' (width|height|version|xmlns)="[^"]*"', "", start)
    for number, colour in enumerate(COLOURS):
        rest = rest.replace(colour, f"var(--c{number})")
    rest = rest.replace("fill: #ffffff", "fill: none").replace("#000000", "currentColor")
    return f'{start} fill="currentColor" aria-hidden="true">{rest.strip()}'
