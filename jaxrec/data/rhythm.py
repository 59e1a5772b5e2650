"""How fast users come back: gaps between events, and between two events of one item."""

from collections.abc import Sequence

import numpy as np

from jaxrec.types import Json

SHARES = (0.25, 0.5, 0.75, 0.9)


class Rhythm:
    """Gaps of all users, collected in chunks of whole users (12 bytes per event at most)."""

    def __init__(self) -> None:
        self._gaps: list[np.ndarray] = []
        self._repeat_events: list[np.ndarray] = []
        self._repeat_seconds: list[np.ndarray] = []
        self._step = 0

    def add(self, user: np.ndarray, items: np.ndarray, times: np.ndarray) -> int:
        """Events of some users, int64 [N] each, users one after the other, oldest first.

        Returns how many events are of an item that the user had before.
        """
        inside = user[1:] == user[:-1]
        gaps = np.diff(times)[inside]
        self._gaps.append(gaps.astype(np.int32))
        self._step = int(np.gcd(self._step, np.gcd.reduce(gaps, initial=0)))
        order = np.lexsort((items, user))  # stable: events of an item stay in their order
        same = (user[order][1:] == user[order][:-1]) & (items[order][1:] == items[order][:-1])
        self._repeat_events.append(np.diff(order)[same].astype(np.int32))
        self._repeat_seconds.append(np.diff(times[order])[same].astype(np.int32))
        return int(same.sum())

    def facts(self) -> Json:
        """Quantiles of the gaps (empty where there are none), and how fine times are.

        gap_seconds: between successive events of a user. repeat_gap_events, repeat_gap_seconds:
        between two events of one item of a user. common_gap_share: gaps as long as the median
        one. time_step: seconds that divide all gaps; 0 where all times of a user are equal.
        """
        gaps = np.concatenate(self._gaps) if self._gaps else np.zeros(0, np.int32)
        middle = np.quantile(gaps, 0.5, method="higher") if len(gaps) else 0
        return {
            "gap_seconds": _quantiles([gaps]),
            "common_gap_share": float((gaps == middle).mean()) if len(gaps) else None,
            "time_step": self._step,
            "repeat_gap_events": _quantiles(self._repeat_events),
            "repeat_gap_seconds": _quantiles(self._repeat_seconds),
        }


def _quantiles(parts: Sequence[np.ndarray]) -> Json:
    values = np.concatenate(parts) if parts else np.zeros(0)
    if not len(values):
        return {}
    found = np.quantile(values, SHARES, method="higher")
    return {f"{share:.0%}": int(value) for share, value in zip(SHARES, found, strict=True)}


def lines(facts: Json) -> list[tuple[str, str]]:
    """(name, text) of a description's lines."""
    found = []
    for name, key in (("gaps", "gap_seconds"), ("repeated after", "repeat_gap_seconds")):
        if facts[key]:
            found.append((name, ", ".join(f"{q} {duration(n)}" for q, n in facts[key].items())))
    if facts["repeat_gap_events"]:
        events = ", ".join(f"{q} {n:,}" for q, n in facts["repeat_gap_events"].items())
        found.append(("", f"{events} events"))
    return found


def duration(seconds: float) -> str:
    """Seconds in a unit that a reader can grasp.

    >>> duration(90), duration(5400), duration(86400 * 30)
    ('90 s', '1.5 hours', '30 days')
    """
    for unit, size in (("days", 86_400), ("hours", 3600), ("min", 60)):
        if seconds >= size * (2 if unit == "min" else 1):
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds:.3g} s"
