"""Where items and compressed tokens stand in a sequence, and who sees whom.

`SegmentLayout` is the single definition of the visibility rule (docs/method.md): attention
backends, the state functions, the data pipeline and the FLOP counts all read it. It is pure
NumPy, immutable and hashable, so it is a static argument of jitted functions.

    >>> layout = SegmentLayout.stream(segment_size=3, tokens=1, max_segments=2)
    >>> layout.segments
    ((3, 1), (3, 1), (3, 0))
    >>> layout.pairs("visible"), layout.raw_view().pairs("visible")
    (36, 66)
"""

from jaxrec.layout.segments import PairCount, Positions, SegmentLayout
from jaxrec.layout.structure import BandRows, EarlierTokens, Run
from jaxrec.layout.visibility import RawItems, SemiLocal, Structure, TokensOnly, View

__all__ = [
    "BandRows",
    "EarlierTokens",
    "PairCount",
    "Positions",
    "RawItems",
    "Run",
    "SegmentLayout",
    "SemiLocal",
    "Structure",
    "TokensOnly",
    "View",
]
