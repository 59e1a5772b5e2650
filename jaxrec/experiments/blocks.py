"""A document as a list of blocks, and its Markdown form (`web` makes the HTML form)."""

import dataclasses
import re
from collections.abc import Sequence


@dataclasses.dataclass(frozen=True)
class Heading:
    """level: 1 for the document, 2 for sections that the contents list, 3 below."""

    text: str
    level: int = 2

    @property
    def anchor(self) -> str:
        """The anchor that repository hosts make, so that links work in both forms.

        >>> Heading("Quality, and cost").anchor
        'quality-and-cost'
        """
        return re.sub(r"[^\w\- ]", "", self.text.lower()).replace(" ", "-")


@dataclasses.dataclass(frozen=True)
class Text:
    """A paragraph; `backticks` mark code. lead: the question of the section, larger on the page."""

    text: str
    lead: bool = False


@dataclasses.dataclass(frozen=True)
class Code:
    """Lines to copy into a shell."""

    text: str


@dataclasses.dataclass(frozen=True)
class Grid:
    """A table; the first column names the row."""

    heads: Sequence[str]
    lines: Sequence[Sequence[str]]


@dataclasses.dataclass(frozen=True)
class Pictures:
    """Plots beside each other: (PNG file, relative to the document's folder; caption)."""

    plots: Sequence[tuple[str, str]]


@dataclasses.dataclass(frozen=True)
class Figures:
    """Headline numbers: (number, what it is, interval and source)."""

    tiles: Sequence[tuple[str, str, str]]


@dataclasses.dataclass(frozen=True)
class Contents:
    """Links to all headings of level 2."""


Block = Heading | Text | Code | Grid | Pictures | Figures | Contents


def markdown(blocks: Sequence[Block]) -> str:
    """The document for a repository; plots are linked files."""
    return "\n\n".join(_markdown(block, blocks) for block in blocks) + "\n"


def _markdown(block: Block, blocks: Sequence[Block]) -> str:
    match block:
        case Heading():
            return f"{'#' * block.level} {block.text}"
        case Text():
            return f"**{block.text}**" if block.lead else block.text
        case Code():
            return f"```\n{block.text}\n```"
        case Grid():
            return table([block.heads, ["---"] * len(block.heads), *block.lines])
        case Pictures():
            return "\n\n".join(f"![{caption}]({file})" for file, caption in block.plots)
        case Figures():
            return "\n".join(f"- **{n}** {label}; {source}" for n, label, source in block.tiles)
        case Contents():
            return "\n".join(f"- [{h.text}](#{h.anchor})" for h in sections(blocks))


def table(lines: Sequence[Sequence[str]]) -> str:
    """Lines of a Markdown table."""
    return "\n".join(
        f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines
    )


def sections(blocks: Sequence[Block]) -> list[Heading]:
    """The headings that the contents list."""
    return [block for block in blocks if isinstance(block, Heading) and block.level == 2]
