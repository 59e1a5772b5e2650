"""Other ways to make a long history short, each a trained row of the experiment `gap`."""

from collections.abc import Callable
from typing import NamedTuple

from jaxrec.config import Config
from jaxrec.errors import ConfigError
from jaxrec.experiments.quality import full_of
from jaxrec.experiments.runs import with_values


class Baseline(NamedTuple):
    """made: its run, from that of the compressed model. sentence: what the page says of it."""

    made: Callable[[Config], Config]
    sentence: str


def _pooled(base: Config) -> Config:
    """A token is the mean of its segment's items and reads nothing; one is enough."""
    return with_values(base, layout__tokens=1, model__token_input="mean")


def _constant(base: Config) -> Config:
    """A token is the same vector for every segment of every user; one is enough."""
    return with_values(base, layout__tokens=1, model__token_input="constant")


def _pooled_parts(base: Config) -> Config:
    """As many means as compressed history has tokens: one for every part of a segment.

    The recent window holds as many events at most. Raises ConfigError where a segment does not
    have as many equal parts as tokens.
    """
    layout = base.layout
    size, rest = divmod(layout.segment_size, layout.tokens)
    if rest:
        raise ConfigError(
            f"experiments.baselines: mean-pooled-parts cuts a segment in as many parts as it has "
            f"tokens: layout.segment_size={layout.segment_size} must be a multiple of "
            f"layout.tokens={layout.tokens}"
        )
    return with_values(
        _pooled(base),
        layout__segment_size=size,
        layout__max_segments=layout.max_segments * layout.tokens,
        layout__recent_min=layout.recent - size + 1,
    )


def _semi_local(base: Config) -> Config:
    """Full history; a position sees as many others as the window and the tokens before it have."""
    layout = base.layout
    return with_values(
        full_of(base),
        layout__window=layout.recent,
        layout__prefix=layout.max_segments * layout.tokens,
    )


BASELINES = {
    "mean-pooled": Baseline(
        _pooled,
        "`mean-pooled` is compressed history whose one token a segment is the mean of its items, "
        "and reads nothing.",
    ),
    "constant": Baseline(
        _constant,
        "`constant` is compressed history whose tokens say that older segments exist, and when, "
        "and nothing of their items.",
    ),
    "mean-pooled-parts": Baseline(
        _pooled_parts,
        "`mean-pooled-parts` has as many tokens as `compressed`, each the mean of its part of the "
        "segment.",
    ),
    "semi-local": Baseline(
        _semi_local,
        "`semi-local` is full history, of which a position sees as many others as there are items "
        "in the recent window and tokens before it; older events reach it in later layers.",
    ),
}


def chosen(names: tuple[str, ...], base: Config) -> dict[str, Config]:
    """The runs of baselines by name, from the compressed one."""
    return {name: BASELINES[name].made(base) for name in names}
