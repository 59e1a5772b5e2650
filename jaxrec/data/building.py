"""The files of a prepared folder, from a whole source or from prepared data and later events."""

import itertools
import json
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Protocol, TypeVar

import numpy as np

from jaxrec.config import DataConfig
from jaxrec.data import append, database, filters, joins, records, sorting, tasks
from jaxrec.data.ingest import EventTypes, Read, check_whole, ingest
from jaxrec.data.prepared import Prepared
from jaxrec.data.raw import Raw
from jaxrec.data.schema import INT32_MAX
from jaxrec.data.vocabulary import Vocabulary
from jaxrec.errors import DataError
from jaxrec.runtime.progress import say
from jaxrec.types import Json

T = TypeVar("T")


class Engine(Protocol):
    """Reads, sorts and writes a data set; every engine gives the same bytes."""

    def each(
        self, function: Callable[[int], T], count: int, workers: int, label: str
    ) -> Iterator[T]:
        """As `tasks.each`."""

    def sort(
        self, raw: Raw, config: DataConfig, scratch: Path, downloads: Path
    ) -> tuple[Read, sorting.Sorted]:
        """The whole source in sorted buckets below `scratch`. Raises DataError."""


class Threads:
    """The engine of one process: its threads."""

    each = staticmethod(tasks.each)

    def sort(
        self, raw: Raw, config: DataConfig, scratch: Path, downloads: Path
    ) -> tuple[Read, sorting.Sorted]:
        """Reads and sorts the events; see the class."""
        part = ingest(raw, scratch / "chunks", config.event_types, config.incomplete)
        types = EventTypes(config.event_types)
        check_whole(raw, [part], types)
        chunks = database.parquet(
            scratch / "chunks", pattern="*.parquet", options="union_by_name = true"
        )
        threads, megabytes = config.prepare_workers, config.prepare_memory
        file = scratch / "events.parquet"
        begin = time.monotonic()
        with database.opened(scratch, threads=threads, megabytes=megabytes) as connection:
            (users, counts), (items, _) = (
                sorting.rank(
                    connection, sorting.ids_of_rows(chunks, name), sorting.id_file(scratch, name)
                )
                for name in ("user", "item")
            )
            copies, repeated = sorting.arrange(
                connection,
                sorting.ranked(chunks, part.columns, scratch, part.first),
                part.columns,
                file,
                duplicates=config.duplicates,
                repeats=config.repeats,
            )
        say(f"data: sorted {part.kept:,} events in {time.monotonic() - begin:.1f} s")
        shutil.rmtree(scratch / "chunks")
        bounds = sorting.bounds_of(counts)
        read = Read(users, items, part.rows, types.names, part.first, part.last)
        return read, sorting.Sorted([file] * (len(bounds) - 1), bounds, copies, repeated)


def build(raw: Raw, config: DataConfig, draft: Path, engine: Engine, downloads: Path) -> Json:
    """Writes a prepared folder, all but its marker, and returns the marker. Raises DataError."""
    workers = config.prepare_workers
    if raw.texts is not None:
        next(raw.texts(), None)  # an unusable table of items fails before the long work
    scratch = draft / "scratch"
    read, buckets = engine.sort(raw, config, scratch, downloads)
    if buckets.duplicates:
        what = "dropped" if config.duplicates == "drop" else "kept"
        say(f"data: {buckets.duplicates:,} rows repeat an earlier row: {what}")
    limits = filters.Limits(
        config.min_item_events, config.min_user_events, config.max_user_events, config.core
    )
    with database.opened(scratch, threads=workers, megabytes=config.prepare_memory) as connection:
        kept = filters.choose(connection, buckets, len(read.items), limits, raw.source)
    # the most frequent item is 1; ties go by raw id
    ranks = np.argsort(-kept.items, kind="stable")[: int((kept.items > 0).sum())]
    dense = np.zeros(len(kept.items), np.int32)
    dense[ranks] = np.arange(1, len(ranks) + 1, dtype=np.int32)
    vocabulary = Vocabulary(read.items[ranks])
    users = read.users[kept.users]
    members = [
        kept.users[first:stop] for first, stop in itertools.pairwise(buckets.bounds.tolist())
    ]
    parts = [bucket for bucket, kept_users in enumerate(members) if kept_users.any()]

    def load(part: int) -> sorting.Events:
        events = buckets.load(parts[part])
        events = filters.apply(events, dense > 0, members[parts[part]])
        return events._replace(items=dense[events.items])

    sizes = [int(members[bucket].sum()) for bucket in parts]
    written = records.write(draft / "records", sizes, users, load, workers, run=engine.each)
    lengths = np.concatenate(written)
    _save(draft, vocabulary, users, lengths)
    if raw.texts is not None:
        _save_texts(draft, joins.join(raw.texts(), vocabulary, config.items_path or raw.source))
    shutil.rmtree(scratch)
    rows = {"rows": read.rows, "duplicates": buckets.duplicates, "repeats": buckets.repeats}
    return {
        "time_origin": read.first,
        "event_types": list(read.event_types),
        "report": rows | _numbers(users, vocabulary, lengths),
    }


def extend(raw: Raw, config: DataConfig, base: Prepared, draft: Path) -> Json:
    """As `build`, for the data of `base` and the later events of `raw`."""
    workers = config.prepare_workers
    scratch = draft / "scratch"
    read, buckets = Threads().sort(raw, config, scratch, draft)
    if read.first < base.time_origin or read.last - base.time_origin > INT32_MAX:
        raise DataError(
            f"{raw.source}: times {read.first}..{read.last} do not follow the prepared data, "
            f"whose first event is at {base.time_origin}. Prepare all files together instead"
        )
    limits = filters.Limits(config.min_item_events, config.min_user_events)
    later = append.number(
        read, buckets, base.vocabulary, base.users, base.event_types, limits, raw.source
    )
    old = np.zeros(len(later.users), np.int64)
    old[: base.num_users] = base.lengths
    lengths = old + np.bincount(later.user, minlength=len(old))
    parts = append.parts_of(lengths)
    ends = np.cumsum(parts).tolist()

    def load(part: int) -> sorting.Events:
        users = range(ends[part] - parts[part], ends[part])
        return append.merge(base.source, base.num_users, base.time_origin, later, users)

    records.write(draft / "records", parts, later.users, load, workers)
    _save(draft, later.vocabulary, later.users, lengths)
    if raw.texts is not None:
        joined = joins.join(raw.texts(), later.vocabulary, config.items_path or raw.source)
        for name, known in (base.texts or {}).items():  # the first text of an item stays
            column = joined.setdefault(name, [""] * (len(later.vocabulary) + 1))
            column[: len(known)] = [a or b for a, b in zip(known, column, strict=False)]
        _save_texts(draft, joined)
    shutil.rmtree(scratch)
    say(
        f"data: added {len(later.items):,} events, {len(later.users) - base.num_users:,} users and "
        f"{len(later.vocabulary) - base.num_items:,} items"
    )
    before = base.report
    return {
        "time_origin": base.time_origin,
        "event_types": list(later.event_types),
        "report": {
            "rows": before["rows"] + read.rows,
            "duplicates": before["duplicates"] + buckets.duplicates,
            "repeats": before["repeats"] + buckets.repeats,
        }
        | _numbers(later.users, later.vocabulary, lengths),
    }


def _save(draft: Path, vocabulary: Vocabulary, users: np.ndarray, lengths: np.ndarray) -> None:
    vocabulary.save(draft / "vocabulary.json")
    np.save(draft / "users.npy", users, allow_pickle=False)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    np.save(draft / "offsets.npy", offsets, allow_pickle=False)


def _save_texts(draft: Path, columns: dict[str, list[str]]) -> None:
    text = json.dumps(columns, ensure_ascii=False)
    (draft / "texts.json").write_text(text, encoding="utf-8")


def _numbers(users: np.ndarray, vocabulary: Vocabulary, lengths: np.ndarray) -> Json:
    return {
        "users": len(users),
        "items": len(vocabulary),
        "events": int(np.sum(lengths)),
        "median_events": float(np.median(lengths)),
    }
