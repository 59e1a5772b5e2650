"""What a table of `gap` allows to say: one sentence, from its intervals alone.

A share of a gap is a ratio of differences. It is said only where the models learned something
(they are above popularity) and to the end (validation no longer grew, and full history is not below
compressed), full history adds something (the gap's interval is above 0) and the interval of the
share is narrow enough.
"""

from collections.abc import Collection, Sequence
from typing import NamedTuple

from jaxrec.types import Json

METRIC = "ndcg@10"  # of the headline
METRICS = {METRIC: "NDCG@10", "recall@10": "Recall@10", "mrr": "MRR"}
WIDEST = 0.5  # of the interval of a share that is still said
FLAT = 0.05  # width of the interval of a gap that is small, as a share of full history's metric


class Verdict(NamedTuple):
    """sentence: with its figures, without a full stop. title: the same, short.

    told: whether the share of the gap may be printed.
    """

    sentence: str
    told: bool
    title: str


class Reason(NamedTuple):
    """Why nothing can be told: short, and with its figures."""

    short: str
    figures: str


class Estimate(NamedTuple):
    """A column with its interval; NaN where the table has none, so that no comparison holds."""

    mean: float
    low: float
    high: float

    @classmethod
    def of(cls, row: Json, column: str) -> "Estimate":
        """The columns `column`, `column_low` and `column_high` of a row."""
        values = (row.get(column + end) for end in ("", "_low", "_high"))
        return cls(*(float("nan") if value is None else float(value) for value in values))

    @property
    def width(self) -> float:
        """high - low."""
        return self.high - self.low

    def above(self, other: "Estimate") -> bool:
        """Whether the intervals are apart, this one above."""
        return self.low > other.high

    def __str__(self) -> str:
        return f"{self.mean:.4f} [{self.low:.4f}, {self.high:.4f}]"


def share(value: Estimate) -> str:
    """A share with its interval, as percentages.

    >>> share(Estimate(0.9, 0.85, 0.95))
    '90.0 % [85.0, 95.0]'
    """
    return "{:.1f} % [{:.1f}, {:.1f}]".format(*(100 * part for part in value))


def verdict(rows: Sequence[Json], metric: str = METRIC, suffix: str = "") -> Verdict:
    """What the rows of `gap` say about compressed tokens.

    suffix: of the rows' names in a part. Raises KeyError without the rows popularity, recent,
    compressed and full.
    """
    by_name = {row["name"]: row for row in rows}
    # a part whose targets are others has its own
    rule = by_name.get(f"popularity{suffix}", by_name["popularity"])
    popularity = Estimate.of(rule, metric)
    recent, full = (Estimate.of(by_name[name + suffix], metric) for name in ("recent", "full"))
    row = by_name["compressed" + suffix]
    gap, closed = Estimate.of(row, f"{metric}_gap"), Estimate.of(row, f"{metric}_closed")
    title = METRICS[metric]
    users = f"{row['users']:,} users are too few" if row.get("users") else "there are too few users"
    levels = {"recent": recent, "full": full}
    low = {name: level for name, level in levels.items() if not level.above(popularity)}
    reasons = []
    if low:
        figures = (
            f"{name}{suffix} is not above {rule['name']} ({title} {level} against {popularity})"
            for name, level in low.items()
        )
        short = f"{listed(list(low))} {_be(low, 'is', 'are')} not above popularity"
        reasons.append(Reason(short, " and ".join(figures)))
    rising = [
        f"{name}{suffix}"
        for name in ("recent", "compressed", "full")
        if by_name[name + suffix].get("still_rising")
    ]
    if rising:
        text = (
            f"{listed(rising)} {_be(rising, 'was', 'were')} still improving when the training ended"
        )
        reasons.append(Reason(text, f"{text} (raise train.steps)"))
    if not gap.low > 0:
        flat = gap.low <= 0 <= gap.high and gap.width <= FLAT * full.mean
        if not reasons and (flat or gap.high < 0):
            text = "History does not help here: recent alone is better"
            if flat:  # whether it helps that little or not at all is not known
                text = "History adds little here, if anything"
            return Verdict(f"{text} (full - recent {title} {gap})", False, text)
        few = ""
        # of models that have not learned yet nobody knows how large it will be
        if not reasons and gap.high > 0:
            size = "to see one of this size" if gap.mean > 0 else "to tell whether it is"
            few = f": {users} {size}"
        short = f"full{suffix} is not above recent{suffix}"
        reasons.append(Reason(short + few, f"{short} (gap in {title} {gap}){few}"))
    elif not reasons and not closed.width <= WIDEST:
        text = f"the interval of the share is wider than {100 * WIDEST:.0f} points"
        reasons.append(Reason(users, f"{text} ({title} {share(closed)}): {users}"))
    elif not reasons and closed.low > 1:
        text = f"full{suffix} has not learned what it could"
        more = f"compressed{suffix}, which is shown no more, closes {share(closed)} of the gap"
        reasons.append(Reason(text, f"{text}: {more} in {title} (raise train.steps)"))
    if reasons:
        return Verdict(
            f"Cannot tell, because {' and '.join(reason.figures for reason in reasons)}",
            False,
            f"Cannot tell: {', '.join(reason.short for reason in reasons)}",
        )
    text = (
        f"Tokens close {share(closed)} of what full history adds, for "
        f"{100 * row['flops_of_full']:.1f} % of the FLOPs of a request; "
        f"{row['state_bytes'] / 1024:.1f} KB a user"
    )
    return Verdict(text, True, text)


def _be(names: Collection[str], one: str, several: str) -> str:
    return one if len(names) == 1 else several


def listed(names: Sequence[str]) -> str:
    """Names as English lists them.

    >>> listed(["recent", "compressed", "full"])
    'recent, compressed and full'
    """
    return " and ".join(filter(None, [", ".join(names[:-1]), names[-1]]))


def reading(rows: Sequence[Json]) -> str:
    """How to read a table of `gap`, from what its rows say."""
    sentences = [
        f"By {title}: {lower(verdict(rows, metric).sentence)}." for metric, title in METRICS.items()
    ]
    by_name = {row["name"]: row for row in rows}
    own, without = (
        Estimate.of(by_name[name], METRIC)
        for name in ("compressed", "compressed without its tokens")
    )
    told = "it reads its tokens"
    if not own.above(without):
        told = "the intervals are not apart, so that it reads its tokens does not show"
    sentences.append(
        f"Shown only its window the compressed model has {METRICS[METRIC]} {without} instead of "
        f"{own}; {told}."
    )
    if "compressed, returns" in by_name:
        answer = lower(verdict(rows, METRIC, ", returns").sentence)
        sentences.append(f"Of planted returns alone, by {METRICS[METRIC]}: {answer}.")
    if "oracle, returns" in by_name:
        names = ("oracle, returns", "full, returns")
        best, full = (Estimate.of(by_name[name], METRIC) for name in names)
        sentences.append(
            f"The oracle has {METRICS[METRIC]} {best} of the returns, full history {full}: what "
            "lies between is lost before any compression."
        )
    if "compressed + counters" in by_name:
        sentences.append(_with_counters(rows))
    sentences.append("`gap` is full - recent, `without gap` the share of resamples that have none.")
    return " ".join(sentences)


# rows that compressed + counters is compared with -> what is said of them
COUNTED = {
    "counters alone": "",
    "recent + counters": "",
    "mean-pooled + counters": "whose tokens read nothing",
}


def _with_counters(rows: Sequence[Json]) -> str:
    """What tokens add to counters of the user's own items.

    No share of a gap is told: counters reach behind the recent window, too, and may close it alone.
    """
    by_name = {row["name"]: row for row in rows}
    kept = Estimate.of(by_name["compressed + counters"], METRIC)
    parts = []
    for name, what in COUNTED.items():
        if name not in by_name:
            continue
        other = Estimate.of(by_name[name], METRIC)
        place = "above" if kept.above(other) else "below" if other.above(kept) else "level with"
        parts.append(f"{place} {name} ({other}{', ' * bool(what)}{what})")
    sentence = f"With counters, compressed has {METRICS[METRIC]} {kept}, {listed(parts)}."
    if "mean-pooled + counters" in by_name:
        return sentence
    return (
        f"{sentence} Its counters reach behind the window of recent, so whether tokens add to them "
        "does not show (experiments.baselines=mean-pooled tells)."
    )


def lower(sentence: str) -> str:
    """A sentence that goes on after a colon.

    >>> lower("Cannot tell")
    'cannot tell'
    """
    return sentence[:1].lower() + sentence[1:]
