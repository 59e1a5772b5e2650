"""What a prepared data set holds, and what in it would spoil a sequential evaluation."""

import datetime
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from jaxrec.data import splits
from jaxrec.data.prepared import Prepared
from jaxrec.data.progress import track

QUANTILES = (0.0, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99, 1.0)
LONG = (200, 500, 1000)  # events
CHUNK = 4096  # users read at once
# A pair of tied events comes in the order of its ids half of the time when nothing sorts them.
SORTED_SHARE, SORTED_PAIRS = 0.8, 50
TIED_TARGETS = 0.01  # of targets that share the time of the event before
LATER_EVENTS = 0.05  # of training events after the middle test target


class _Part(NamedTuple):
    """Some users' events: user int64, items, times [N], place of an event in its history."""

    user: np.ndarray
    items: np.ndarray
    times: np.ndarray
    place: np.ndarray


def describe(prepared: Prepared) -> dict[str, Any]:
    """Numbers of a data set and its split as a JSON value; one pass over the records.

    `warnings` is a list of sentences, each about something that makes results look better or worse
    than they are: ties sorted by item id, an order that tells the next item, targets that do not
    follow their history, training on events after the test targets, targets never trained on.
    """
    counts = np.zeros(prepared.num_items + 1, np.int64)
    tally: dict[str, int] = dict.fromkeys(
        ("ties", "repeats", "again", "tied pairs", "tied rising", "pairs", "rising"), 0
    )
    first, stop = splits.target_range(prepared.boundaries, prepared.lengths, "test")
    # the place of a raw id among all raw ids: what a file sorted by item is sorted by
    rank = np.zeros(prepared.num_items + 1, np.int64)
    rank[1:][np.argsort(prepared.vocabulary.ids, kind="stable")] = np.arange(prepared.num_items)
    low, high, target_times, tied_targets, cold = 2**31, -1, [], 0, 0
    train_times = []
    for part in _parts(prepared):
        counts += np.bincount(part.items, minlength=len(counts))
        low, high = min(low, int(part.times.min())), max(high, int(part.times.max()))
        inside = part.user[1:] == part.user[:-1]
        tied = inside & (part.times[1:] == part.times[:-1])
        same = part.items[1:] == part.items[:-1]
        rises = rank[part.items[1:]] > rank[part.items[:-1]]
        other = inside & ~tied & ~same
        tally["ties"] += int(tied.sum())
        tally["again"] += int((inside & same).sum())
        tally["tied pairs"] += int((tied & ~same).sum())
        tally["tied rising"] += int((tied & rises).sum())
        tally["pairs"] += int(other.sum())
        tally["rising"] += int((other & rises).sum())
        joint = part.user * (prepared.num_items + 1) + part.items
        tally["repeats"] += len(joint) - len(np.unique(joint))
        target = (part.place >= first[part.user]) & (part.place < stop[part.user])
        target_times.append(part.times[target].astype(np.int32))
        tied_targets += int((target[1:] & tied).sum())
        cold += int((prepared.counts[part.items[target]] == 0).sum())
        trained = part.place < prepared.boundaries.train_end[part.user]
        train_times.append(part.times[trained].astype(np.int32))
    found = {
        **_sizes(prepared),
        **_shares(tally, int(counts.sum())),
        "first_time": _date(prepared, low),
        "last_time": _date(prepared, high),
        "days": (high - low) / 86_400,
        **_tail(counts[1:]),
        **_split(np.concatenate(target_times), np.concatenate(train_times), tied_targets, cold),
    }
    return {**found, "warnings": _warnings(prepared, found)}


def _parts(prepared: Prepared) -> Iterator[_Part]:
    starts = range(0, prepared.num_users, CHUNK)
    for start in track(starts, len(starts), "data: describing"):
        users = np.arange(start, min(start + CHUNK, prepared.num_users))
        records = prepared.source.__getitems__(users.tolist())
        sizes = np.asarray([len(record.items) for record in records])
        begin = np.repeat(np.cumsum(sizes) - sizes, sizes)
        yield _Part(
            np.repeat(users, sizes),
            np.concatenate([record.items for record in records]).astype(np.int64),
            np.concatenate([record.times for record in records]).astype(np.int64),
            np.arange(sizes.sum()) - begin,
        )


def _sizes(prepared: Prepared) -> dict[str, Any]:
    lengths = prepared.lengths
    quantiles = np.quantile(lengths, QUANTILES, method="higher")
    return {
        "rows": prepared.report["rows"],
        "duplicates": prepared.report["duplicates"],
        "events": int(lengths.sum()),
        "users": prepared.num_users,
        "items": prepared.num_items,
        "event_types": list(prepared.event_types),
        "mean_events": float(lengths.mean()),
        "events_quantiles": {f"{q:.0%}": int(n) for q, n in zip(QUANTILES, quantiles, strict=True)},
        "users_with_events": {str(n): int((lengths >= n).sum()) for n in LONG},
    }


def _shares(tally: dict[str, int], events: int) -> dict[str, Any]:
    """ties: events at the time of the user's event before. repeats: items the user had before;
    again: right before. rising: pairs of neighbours in the order of raw ids."""
    return {
        "tie_share": tally["ties"] / events,
        "repeat_share": tally["repeats"] / events,
        "repeat_at_once_share": tally["again"] / events,
        "tied_pairs": tally["tied pairs"],
        "tied_pairs_rising": _over(tally["tied rising"], tally["tied pairs"]),
        "pairs": tally["pairs"],
        "pairs_rising": _over(tally["rising"], tally["pairs"]),
    }


def _over(part: int, whole: int) -> float | None:
    return part / whole if whole else None


def _tail(counts: np.ndarray) -> dict[str, Any]:
    """Share of events that fall on the most frequent items, and rare items."""
    ranked = np.sort(counts)[::-1]
    total = int(ranked.sum())
    return {
        "top_items_share": {
            f"{share:.0%}": float(ranked[: max(round(share * len(ranked)), 1)].sum() / total)
            for share in (0.01, 0.1, 0.2)
        },
        "items_below_events": {str(n): int((counts < n).sum()) for n in (5, 20)},
    }


def _split(targets: np.ndarray, train: np.ndarray, tied: int, cold: int) -> dict[str, Any]:
    found: dict[str, Any] = {"train_events": len(train), "test_targets": len(targets)}
    if len(targets):
        middle = np.median(targets)
        found |= {
            "tied_target_share": tied / len(targets),
            "cold_target_share": cold / len(targets),
            "train_after_middle_target_share": float((train > middle).mean()) if len(train) else 0,
        }
    return found


def _date(prepared: Prepared, seconds: int) -> str:
    moment = datetime.datetime.fromtimestamp(prepared.time_origin + seconds, datetime.UTC)
    return moment.isoformat().replace("+00:00", "Z")


def _warnings(prepared: Prepared, found: dict[str, Any]) -> list[str]:
    lines = []
    share = found["tied_pairs_rising"]
    if found["tied_pairs"] >= SORTED_PAIRS and not 1 - SORTED_SHARE < share < SORTED_SHARE:
        lines.append(
            f"ties are sorted by item id: of {found['tied_pairs']:,} neighbours at one time "
            f"{share:.0%} have rising ids (half is chance), so a basket's order tells its next "
            "item. Shuffle events of one time before preparing, or predict whole baskets"
        )
    share = found["pairs_rising"]
    if found["pairs"] >= SORTED_PAIRS and not 1 - SORTED_SHARE < share < SORTED_SHARE:
        lines.append(
            f"the order leaks the next item: {share:.0%} of {found['pairs']:,} successive events "
            "have rising item ids (half is chance), as in a table sorted by item whose times were "
            "made up. Check the time column"
        )
    tied = found.get("tied_target_share", 0)
    if tied > TIED_TARGETS:
        lines.append(
            f"targets do not follow their history: {tied:.1%} of the test targets happened at the "
            "time of the event before them, so input and target may stand in either order. Use "
            "finer times, or hold whole baskets out"
        )
    later = found.get("train_after_middle_target_share", 0)
    if later > LATER_EVENTS:
        lines.append(
            f"time travel between splits: {later:.0%} of the training events come after the middle "
            "test target, so the model has seen the future of most targets. Use data.split=time "
            "for figures that hold in production"
        )
    cold = found.get("cold_target_share", 0)
    if cold > 0.1:
        lines.append(
            f"{cold:.0%} of the test targets are items without any training event: no model of "
            "item ids can rank them. Report them apart, or use item texts"
        )
    if found["duplicates"] > found["rows"] / 100:
        lines.append(
            f"{found['duplicates']:,} of {found['rows']:,} rows repeat an earlier one. Set "
            "data.duplicates=drop unless each of them is an event"
        )
    if not found["test_targets"]:
        lines.append("no user has a test target: lower data.holdout or give longer histories")
    return lines


def table(found: dict[str, Any]) -> str:
    """The description as lines of text."""
    quantiles = ", ".join(f"{q} {n:,}" for q, n in found["events_quantiles"].items())
    users = ", ".join(
        f">= {n}: {count:,} ({count / found['users']:.1%})"
        for n, count in found["users_with_events"].items()
    )
    top = ", ".join(f"top {q}: {share:.1%}" for q, share in found["top_items_share"].items())
    rare = ", ".join(f"< {n} events: {count:,}" for n, count in found["items_below_events"].items())
    lines = [
        ("rows", f"{found['rows']:,}, {found['duplicates']:,} repeat an earlier one"),
        ("events", f"{found['events']:,}"),
        ("users", f"{found['users']:,}"),
        ("items", f"{found['items']:,}"),
        ("events per user", f"{quantiles}, mean {found['mean_events']:.1f}"),
        ("long users", users),
        ("time", f"{found['first_time']} to {found['last_time']}, {found['days']:.0f} days"),
        ("ties", f"{found['tie_share']:.1%} of events at the time of the one before"),
        (
            "repeats",
            f"{found['repeat_share']:.1%} of events, {found['repeat_at_once_share']:.1%} at once",
        ),
        ("events on items", top),
        ("rare items", rare),
        ("split", f"{found['train_events']:,} train, {found['test_targets']:,} test targets"),
    ]
    if found["event_types"]:
        lines.append(("event types", ", ".join(found["event_types"])))
    text = [f"{name:<16} {value}" for name, value in lines]
    return "\n".join([*text, *(f"warning: {line}" for line in found["warnings"])])


def plot(prepared: Prepared, path: str) -> None:
    """A PNG of how long histories are and how events spread over items.

    Raises ModuleNotFoundError without matplotlib.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.5), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    lengths = np.sort(prepared.lengths)
    left.plot(lengths, 1 - np.arange(len(lengths)) / len(lengths))
    left.set(xscale="log", yscale="log", xlabel="events", ylabel="share of users with as many")
    counts = np.sort(prepared.counts[1:])[::-1]
    share = np.cumsum(counts) / max(int(counts.sum()), 1)
    right.plot(np.arange(1, len(share) + 1), share)
    right.set(xscale="log", xlabel="most frequent items", ylabel="share of training events")
    for axes in (left, right):
        axes.grid(alpha=0.3)
    figure.savefig(path, dpi=110)
