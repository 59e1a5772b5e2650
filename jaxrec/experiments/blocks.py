"""A document as a list of blocks, and the same blocks as Markdown (`web` makes HTML of them)."""

import dataclasses
import re
from collections.abc import Sequence


@dataclasses.dataclass(frozen=True)
class Heading:
    text: str
    level: int = 2  # 1 the document, 2 what the contents list, 3 below

    @property
    def anchor(self) -> str:
        """As repositories on the web make it, so that links work in both forms."""
        return re.sub(r"[^\w\- ]", "", self.text.lower()).replace(" ", "-")


@dataclasses.dataclass(frozen=True)
class Text:
    """A paragraph; `backticks` mark code. lead: what the section asks, larger on the page."""

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
    """Plots beside each other: names of files in the folder, without ending, and what they show."""

    plots: Sequence[tuple[str, str]]


@dataclasses.dataclass(frozen=True)
class Figures:
    """Numbers to remember: (number, what it is, interval and where it is from)."""

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
            return "\n\n".join(f"![{what}]({name}.svg)" for name, what in block.plots)
        case Figures():
            return "\n".join(f"- **{n}** {what}; {source}" for n, what, source in block.tiles)
        case Contents():
            return "\n".join(f"- [{h.text}](#{h.anchor})" for h in sections(blocks))


def table(lines: Sequence[Sequence[str]]) -> str:
    return "\n".join(
        f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines
    )


def sections(blocks: Sequence[Block]) -> list[Heading]:
    """What the contents list."""
    return [block for block in blocks if isinstance(block, Heading) and block.level == 2]
