"""Statistics of a prepared data set, and warnings about what spoils a sequential evaluation."""

import datetime
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from jaxrec.data import rhythm, splits
from jaxrec.data.prepared import Prepared
from jaxrec.runtime.progress import track
from jaxrec.types import Json

QUANTILES = (0.0, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99, 1.0)
LONG = (200, 500, 1000)  # events
CHUNK = 4096  # users read at once
# A pair of tied events comes in the order of its ids half of the time when nothing sorts them.
SORTED_SHARE, SORTED_PAIRS = 0.8, 50
TIED_TARGETS = 0.01  # of targets that share the time of the event before
LATER_EVENTS = 0.05  # of training events after the middle test target


class _Part(NamedTuple):
    """Events of some users.

    user, items, times: int64 [N]. place: int64 [N], index of the event in its history.
    """

    user: np.ndarray
    items: np.ndarray
    times: np.ndarray
    place: np.ndarray


def describe(prepared: Prepared) -> Json:
    """Statistics of a data set and its split as a JSON value; one pass over the records.

    `warnings` is a list of sentences, each about something that makes results look better or worse
    than they are: ties sorted by item id, an order that leaks the next item, targets at the time of
    their history, training on events after the test targets, targets that never occur in training.
    """
    counts = np.zeros(prepared.num_items + 1, np.int64)
    tally: dict[str, int] = dict.fromkeys(
        ("ties", "repeats", "again", "tied pairs", "tied rising", "pairs", "rising"), 0
    )
    first, stop = splits.target_range(prepared.boundaries, prepared.lengths, "test")
    # the place of a raw id among all raw ids: what a file sorted by item is sorted by
    rank = np.zeros(prepared.num_items + 1, np.int64)
    rank[1:][np.argsort(prepared.vocabulary.ids, kind="stable")] = np.arange(prepared.num_items)
    found = rhythm.Rhythm()
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
        tally["repeats"] += found.add(part.user, part.items, part.times)
        target = (part.place >= first[part.user]) & (part.place < stop[part.user])
        target_times.append(part.times[target].astype(np.int32))
        tied_targets += int((target[1:] & tied).sum())
        cold += int((prepared.counts[part.items[target]] == 0).sum())
        trained = part.place < prepared.boundaries.train_end[part.user]
        train_times.append(part.times[trained].astype(np.int32))
    numbers = {
        **_sizes(prepared),
        **_shares(tally, int(counts.sum())),
        "first_time": _date(prepared, low),
        "last_time": _date(prepared, high),
        "days": (high - low) / 86_400,
        **found.facts(),
        **_tail(counts[1:]),
        "test_users": int((stop > first).sum()),
        **_split(np.concatenate(target_times), np.concatenate(train_times), tied_targets, cold),
    }
    return {**numbers, "warnings": _warnings(prepared, numbers)}


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


def _sizes(prepared: Prepared) -> Json:
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


def _shares(tally: dict[str, int], events: int) -> Json:
    """Shares of all events.

    ties: events at the time of the user's event before. repeats: items that the user had before;
    again: right before. rising: neighbouring events in the order of their raw ids.
    """
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


def _tail(counts: np.ndarray) -> Json:
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


def _split(targets: np.ndarray, train: np.ndarray, tied: int, cold: int) -> Json:
    numbers: Json = {"train_events": len(train), "test_targets": len(targets)}
    if len(targets):
        middle = np.median(targets)
        numbers |= {
            "tied_target_share": tied / len(targets),
            "cold_target_share": cold / len(targets),
            "train_after_middle_target_share": float((train > middle).mean()) if len(train) else 0,
        }
    return numbers


def _date(prepared: Prepared, seconds: int) -> str:
    moment = datetime.datetime.fromtimestamp(prepared.time_origin + seconds, datetime.UTC)
    return moment.isoformat().replace("+00:00", "Z")


def _warnings(prepared: Prepared, numbers: Json) -> list[str]:
    lines = []
    share = numbers["tied_pairs_rising"]
    if numbers["tied_pairs"] >= SORTED_PAIRS and not 1 - SORTED_SHARE < share < SORTED_SHARE:
        lines.append(
            f"ties are sorted by item id: of {numbers['tied_pairs']:,} neighbours at one time "
            f"{share:.0%} have rising ids (half is chance), so a basket's order tells its next "
            "item. Shuffle events of one time before preparing, or predict whole baskets"
        )
    share = numbers["pairs_rising"]
    if numbers["pairs"] >= SORTED_PAIRS and not 1 - SORTED_SHARE < share < SORTED_SHARE:
        lines.append(
            f"the order leaks the next item: {share:.0%} of {numbers['pairs']:,} successive events "
            "have rising item ids (half is chance), as in a table sorted by item whose times were "
            "made up. Check the time column"
        )
    tied = numbers.get("tied_target_share", 0)
    if tied > TIED_TARGETS:
        lines.append(
            f"targets do not follow their history: {tied:.1%} of the test targets happened at the "
            "time of the event before them, so input and target may stand in either order. Use "
            "finer times, or hold whole baskets out"
        )
    later = numbers.get("train_after_middle_target_share", 0)
    if later > LATER_EVENTS:
        lines.append(
            f"time travel between splits: {later:.0%} of the training events come after the middle "
            "test target, so the model has seen the future of most targets. Use data.split=time "
            "for figures that hold in production"
        )
    cold = numbers.get("cold_target_share", 0)
    if cold > 0.1:
        lines.append(
            f"{cold:.0%} of the test targets are items without any training event: no model of "
            "item ids can rank them. Report them separately, or use item texts"
        )
    if numbers["duplicates"] > numbers["rows"] / 100:
        lines.append(
            f"{numbers['duplicates']:,} of {numbers['rows']:,} rows repeat an earlier one. Set "
            "data.duplicates=drop unless each of them is an event"
        )
    if not numbers["test_targets"]:
        lines.append("no user has a test target: lower data.holdout or give longer histories")
    return lines


def table(numbers: Json) -> str:
    """The description as lines of text."""
    quantiles = ", ".join(f"{q} {n:,}" for q, n in numbers["events_quantiles"].items())
    users = ", ".join(
        f">= {n}: {count:,} ({count / numbers['users']:.1%})"
        for n, count in numbers["users_with_events"].items()
    )
    top = ", ".join(f"top {q}: {share:.1%}" for q, share in numbers["top_items_share"].items())
    rare = ", ".join(
        f"< {n} events: {count:,}" for n, count in numbers["items_below_events"].items()
    )
    lines = [
        ("rows", f"{numbers['rows']:,}, {numbers['duplicates']:,} repeat an earlier one"),
        ("events", f"{numbers['events']:,}"),
        ("users", f"{numbers['users']:,}"),
        ("items", f"{numbers['items']:,}"),
        ("events per user", f"{quantiles}, mean {numbers['mean_events']:.1f}"),
        ("long users", users),
        ("time", f"{numbers['first_time']} to {numbers['last_time']}, {numbers['days']:.0f} days"),
        ("ties", f"{numbers['tie_share']:.1%} of events at the time of the one before"),
        (
            "repeats",
            f"{numbers['repeat_share']:.1%} of events, "
            f"{numbers['repeat_at_once_share']:.1%} at once",
        ),
        *rhythm.lines(numbers),
        ("events on items", top),
        ("rare items", rare),
        ("split", f"{numbers['train_events']:,} train, {numbers['test_targets']:,} test targets"),
    ]
    if numbers["event_types"]:
        lines.append(("event types", ", ".join(numbers["event_types"])))
    text = [f"{name:<16} {value}" for name, value in lines]
    return "\n".join([*text, *(f"warning: {line}" for line in numbers["warnings"])])


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
