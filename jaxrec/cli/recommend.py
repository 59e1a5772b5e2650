"""`jaxrec recommend`: the best next items of users, from a store of their states."""

from collections.abc import Sequence

from jaxrec.serving.arguments import parsers
from jaxrec.serving.command import work


def main(argv: Sequence[str]) -> int:
    """`jaxrec recommend`; returns its exit status."""
    return work(parsers("jaxrec", {"recommend": "recommend"})["recommend"].parse_args(argv))
