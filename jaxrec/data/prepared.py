"""Prepared data: read once, filtered, cut into users, cached in a folder named by its settings.

    <root>/<dataset>-<digest>/
        complete.json     settings, numbers, sizes of the files: written last
        vocabulary.json   raw id of every dense item id
        users.npy         raw id of every dense user index
        offsets.npy       events before each user
        texts.json        item texts, where the source has them
        records/          one array_record record per user (`jaxrec.data.records`)
        split-<digest>.npz  boundaries and training counts of one split

A preparation happens in a folder of its own and is renamed when complete, so an interrupted
one is never taken for data. Other settings get another folder.
"""

import contextlib
import dataclasses
import functools
import itertools
import json
import os
import shutil
import uuid
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from jaxrec.config import DataConfig, digest
from jaxrec.data import append, datasets, filters, joins, records, sorting, splits
from jaxrec.data.histories import Histories
from jaxrec.data.ingest import Read, ingest
from jaxrec.data.progress import say, track
from jaxrec.data.raw import Raw
from jaxrec.data.schema import INT32_MAX, DataError, Vocabulary
from jaxrec.data.splits import Boundaries

FORMAT = 2  # of the folder; raise it when its content changes
MARKER = "complete.json"
# settings that say how data is kept, loaded or found, not what it is
ELSEWHERE = ("cache_dir", "workers", "worker_processes", "prepare_workers", "path", "items_path")
SPLIT_KEYS = ("split", "holdout", "validation_time", "test_time")


class Ancestor(NamedTuple):
    """A data set that later files were added to: its digest and how much of each it had."""

    digest: str
    users: int
    items: int


@dataclasses.dataclass(frozen=True, eq=False)
class Prepared:
    """A data set ready for training and evaluation; users are 0..U-1, items 1..V.

    folder: where it lies. digest: 12 hex digits that identify content and split.
    vocabulary: raw item ids. users: raw user ids [U].
    offsets: int64 [U + 1], events before each user.
    boundaries: which events train, validate, test.
    counts: int64 [V + 1], training events per item.
    time_origin: seconds since 1970 that event times count from.
    source: the users' records, read from disk on demand; picklable.
    report: numbers of the preparation (rows, duplicates, users, items, events).
    event_types: names of the values of `Record.event`; empty: events have no types.
    ancestors: what `data.append` was added to, oldest first; their users and items are the first
        of these.
    """

    folder: Path
    digest: str
    vocabulary: Vocabulary
    users: np.ndarray
    offsets: np.ndarray
    boundaries: Boundaries
    counts: np.ndarray
    time_origin: int
    source: records.RecordSource
    report: dict[str, Any]
    event_types: tuple[str, ...] = ()
    ancestors: tuple[Ancestor, ...] = ()

    @property
    def num_users(self) -> int:
        """U."""
        return len(self.users)

    @property
    def num_items(self) -> int:
        """V, padding not counted."""
        return len(self.vocabulary)

    @property
    def lengths(self) -> np.ndarray:
        """int64 [U], events per user."""
        return np.diff(self.offsets)

    @functools.cached_property
    def histories(self) -> Histories:
        """All events in memory, read once when first asked for (9 bytes an event)."""
        size = int(self.offsets[-1])
        items, times = np.zeros(size, np.int32), np.zeros(size, np.int32)
        returning: np.ndarray | None = None
        for user, record in enumerate(read_all(self.source, self.num_users)):
            events = slice(self.offsets[user], self.offsets[user + 1])
            items[events], times[events] = record.items, record.times
            if record.returning is not None:
                returning = np.zeros(size, bool) if returning is None else returning
                returning[events] = record.returning
        return Histories(self.offsets, items, times, self.users, returning)

    @functools.cached_property
    def texts(self) -> dict[str, list[str]] | None:
        """Column -> text of every dense item id (entry 0 and unknown items: empty), or None."""
        file = self.folder / "texts.json"
        return json.loads(file.read_text(encoding="utf-8")) if file.exists() else None


def prepare(
    config: DataConfig, folder: str | os.PathLike[str], engine: "Engine | None" = None
) -> Prepared:
    """Prepares the data set of `config`, or loads it when it already is.

    folder: where prepared data is kept when `config.cache_dir` is empty (`<workdir>/data`).
    engine: what does the work (`jaxrec.data.beam`), default: threads of this process. Appended
        files are always read by this process.

    Raises DataError when the source cannot be used or the prepared folder is damaged, naming
    the file, what was found and what to do.
    """
    root = Path(config.cache_dir or folder)
    base: Prepared | None = None
    # every later file is added to what is there without it
    for count in range(len(config.append) + 1):
        stage = dataclasses.replace(config, append=config.append[:count])
        settings = _settings(stage)
        key = digest(settings)
        target = root / f"{config.dataset}-{key}"
        if not target.exists():
            root.mkdir(parents=True, exist_ok=True)
            with _lock(root / f".lock-{key}"):
                if not target.exists():  # another process may have prepared it meanwhile
                    _write(stage, settings, target, base, engine)
        found = _load(stage, key, target)
        base = found if base is None else _behind(base, found)
    assert base is not None
    return base


def _behind(base: Prepared, data: Prepared) -> Prepared:
    """`data` with its ancestors; raises DataError unless it continues `base`."""
    users, items = base.num_users, base.num_items
    same = (
        np.array_equal(data.users[:users], base.users)
        and np.array_equal(data.vocabulary.ids[:items], base.vocabulary.ids)
        and data.time_origin == base.time_origin
        and bool((data.lengths[:users] >= base.lengths).all())
    )
    if not same:
        raise DataError(
            f"{data.folder}: does not begin with the users and items of {base.folder}, which it "
            f"was appended to. Remove the folder to prepare it again: {data.folder}"
        )
    before = Ancestor(base.digest, users, items)
    return dataclasses.replace(data, ancestors=(*base.ancestors, before))


def read_all(source: records.RecordSource, users: int, chunk: int = 1024) -> Iterator[Any]:
    """The records of users 0..users-1, read in chunks."""
    for start in range(0, users, chunk):
        yield from source.__getitems__(range(start, min(start + chunk, users)))


def _settings(config: DataConfig) -> dict[str, Any]:
    """What decides the content of the folder."""
    settings = dataclasses.asdict(config)
    for name in ELSEWHERE + SPLIT_KEYS:
        del settings[name]
    if config.dataset != "synthetic":
        del settings["synthetic"]
    settings["append"] = [datasets.fingerprint(_later(config, path)) for path in config.append]
    return {"format": FORMAT, "source": datasets.fingerprint(config), **settings}


def _later(config: DataConfig, path: str) -> DataConfig:
    """The configuration that reads an appended path alone."""
    return dataclasses.replace(config, path=path, append=())


@contextlib.contextmanager
def _lock(path: Path) -> Iterator[None]:
    """One preparation at a time; the system releases the lock when its process ends."""
    import fcntl

    with path.open("w") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield


def _write(
    config: DataConfig,
    settings: dict[str, Any],
    target: Path,
    base: Prepared | None,
    engine: "Engine | None",
) -> None:
    draft = target.with_name(f".preparing-{target.name}")
    shutil.rmtree(draft, ignore_errors=True)  # what an interrupted preparation left
    draft.mkdir()
    try:
        say(f"data: reading {config.dataset}")
        reading = _later(config, config.append[-1]) if config.append else config
        downloads = target.with_name("downloads")
        raw = datasets.read(reading, downloads)
        if base is None:
            marker = _build(raw, config, draft, engine or Threads(), downloads)
        else:
            marker = _extend(raw, config, base, draft)
        seal(draft, target, {"settings": settings, **marker})
    except OSError as error:
        shutil.rmtree(draft, ignore_errors=True)
        raise DataError(
            f"{target.parent}: prepared data could not be written ({error}). Free space there or "
            "set data.cache_dir to another folder"
        ) from error
    except BaseException:
        shutil.rmtree(draft, ignore_errors=True)
        raise


class Engine(Protocol):
    """What reads, sorts and writes: all engines give the same bytes."""

    def sort(
        self, raw: Raw, config: DataConfig, scratch: Path, downloads: Path
    ) -> tuple[Read, sorting.Sorted]:
        """The whole source in sorted buckets below `scratch`."""

    def each(self, function: Any, count: int, workers: int, label: str) -> Iterator[Any]:
        """As `sorting.each`."""


class Threads:
    """The threads of this process."""

    each = staticmethod(sorting.each)

    def sort(
        self, raw: Raw, config: DataConfig, scratch: Path, downloads: Path
    ) -> tuple[Read, sorting.Sorted]:
        spilled = ingest(raw, scratch / "chunks", config.event_types, config.incomplete)
        rules = config.duplicates, config.repeats, config.prepare_workers
        buckets = sorting.sort(spilled, scratch / "buckets", *rules)
        users, items = spilled.users.ids, spilled.items.ids
        return Read(users, items, spilled.rows, spilled.event_types, spilled.first), buckets


def _build(
    raw: Raw, config: DataConfig, draft: Path, engine: Engine, downloads: Path
) -> dict[str, Any]:
    """Everything but the marker, which is returned."""
    workers = config.prepare_workers
    if raw.texts is not None:
        next(raw.texts(), None)  # a table of items that cannot be used fails before the long part
    scratch = draft / "scratch"
    read, buckets = engine.sort(raw, config, scratch, downloads)
    if buckets.duplicates:
        what = "dropped" if config.duplicates == "drop" else "kept"
        say(f"data: {buckets.duplicates:,} rows repeat an earlier row: {what}")
    limits = filters.Limits(
        config.min_item_events, config.min_user_events, config.max_user_events, config.core
    )
    kept = filters.choose(buckets, len(read.items), limits, raw.source, workers, engine.each)
    # the most frequent item is 1; ties go by raw id
    ranks = np.argsort(-kept.items, kind="stable")[: int((kept.items > 0).sum())]
    dense = np.zeros(len(kept.items), np.int32)
    dense[ranks] = np.arange(1, len(ranks) + 1, dtype=np.int32)
    vocabulary = Vocabulary(read.items[ranks])
    users = read.users[kept.users]
    members = [
        kept.users[first:stop] for first, stop in itertools.pairwise(buckets.bounds.tolist())
    ]
    parts = [bucket for bucket, chosen in enumerate(members) if chosen.any()]

    def load(part: int) -> sorting.Events:
        events = buckets.load(parts[part])
        events = filters.apply(events, dense > 0, members[parts[part]])
        return events._replace(items=dense[events.items])

    sizes = [int(members[bucket].sum()) for bucket in parts]
    written = records.write(draft / "records", sizes, users, load, workers, run=engine.each)
    lengths = np.concatenate(written)
    vocabulary.save(draft / "vocabulary.json")
    np.save(draft / "users.npy", users, allow_pickle=False)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    np.save(draft / "offsets.npy", offsets, allow_pickle=False)
    if raw.texts is not None:
        joined = joins.join(raw.texts(), vocabulary, config.items_path or raw.source)
        texts = json.dumps(joined, ensure_ascii=False)
        (draft / "texts.json").write_text(texts, encoding="utf-8")
    shutil.rmtree(scratch)
    return {
        "time_origin": read.first,
        "event_types": list(read.event_types),
        "report": {
            "rows": read.rows,
            "duplicates": buckets.duplicates,
            "repeats": buckets.repeats,
            "users": len(users),
            "items": len(vocabulary),
            "events": int(offsets[-1]),
            "median_events": float(np.median(lengths)),
        },
    }


def _extend(raw: Raw, config: DataConfig, base: Prepared, draft: Path) -> dict[str, Any]:
    """As `_build`, for `base` and the later events of `raw`."""
    workers = config.prepare_workers
    scratch = draft / "scratch"
    spilled = ingest(raw, scratch / "chunks", config.event_types, config.incomplete)
    last = spilled.last - base.time_origin
    if spilled.first < base.time_origin or last > INT32_MAX:
        raise DataError(
            f"{raw.source}: times {spilled.first}..{spilled.last} do not follow the prepared data, "
            f"whose first event is at {base.time_origin}. Prepare all files together instead"
        )
    buckets = sorting.sort(spilled, scratch / "buckets", config.duplicates, config.repeats, workers)
    limits = filters.Limits(config.min_item_events, config.min_user_events)
    later = append.number(
        spilled, buckets, base.vocabulary, base.users, base.event_types, limits, raw.source
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
    later.vocabulary.save(draft / "vocabulary.json")
    np.save(draft / "users.npy", later.users, allow_pickle=False)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    np.save(draft / "offsets.npy", offsets, allow_pickle=False)
    if raw.texts is not None:
        joined = joins.join(raw.texts(), later.vocabulary, config.items_path or raw.source)
        for name, known in (base.texts or {}).items():  # what an item was called first stays
            column = joined.setdefault(name, [""] * (len(later.vocabulary) + 1))
            column[: len(known)] = [a or b for a, b in zip(known, column, strict=False)]
        texts = json.dumps(joined, ensure_ascii=False)
        (draft / "texts.json").write_text(texts, encoding="utf-8")
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
            "rows": before["rows"] + spilled.rows,
            "duplicates": before["duplicates"] + buckets.duplicates,
            "repeats": before["repeats"] + buckets.repeats,
            "users": len(later.users),
            "items": len(later.vocabulary),
            "events": int(offsets[-1]),
            "median_events": float(np.median(lengths)),
        },
    }


def seal(draft: Path, target: Path, marker: dict[str, Any]) -> None:
    """Writes the marker with the sizes of all files and renames the folder."""
    sizes = {
        str(file.relative_to(draft)): file.stat().st_size
        for file in sorted(draft.rglob("*"))
        if file.is_file()
    }
    text = json.dumps({**marker, "files": sizes}, indent=2, sort_keys=True)
    (draft / MARKER).write_text(text)
    for file in draft.rglob("*"):
        if file.is_file():
            _sync(file)
    os.rename(draft, target)
    _sync(target.parent)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _load(config: DataConfig, key: str, folder: Path) -> Prepared:
    again = f"Remove the folder to prepare it again: {folder}"
    try:
        marker = json.loads((folder / MARKER).read_text())
        files = marker["files"]
    except (OSError, KeyError, ValueError) as error:
        raise DataError(f"{folder / MARKER}: missing or damaged ({error!r}). {again}") from error
    for name, size in files.items():
        file = folder / name
        found = file.stat().st_size if file.is_file() else None
        if found != size:
            state = "is missing" if found is None else f"has {found} bytes"
            raise DataError(f"{file} {state}, it was written with {size} bytes. {again}")
    try:
        vocabulary = Vocabulary.load(folder / "vocabulary.json")
        users = np.load(folder / "users.npy", allow_pickle=False)
        offsets = np.load(folder / "offsets.npy", allow_pickle=False)
    except ValueError as error:
        raise DataError(f"{folder}: damaged ({error}). {again}") from error
    source = records.RecordSource(folder / "records")
    split = {name: getattr(config, name) for name in SPLIT_KEYS}
    if config.split == "last":
        del split["validation_time"], split["test_time"]
    else:
        del split["holdout"]
    boundaries, counts = _split(split, folder, source, offsets, len(vocabulary))
    report = marker["report"]
    say(
        f"data: {config.dataset}, {report['users']:,} users, {report['items']:,} items, "
        f"{report['events']:,} events, median {report['median_events']:.0f} per user"
    )
    return Prepared(
        folder=folder,
        digest=digest(key, split),
        vocabulary=vocabulary,
        users=users,
        offsets=offsets,
        boundaries=boundaries,
        counts=counts,
        time_origin=marker["time_origin"],
        source=source,
        report=report,
        event_types=tuple(marker["event_types"]),
    )


def _split(
    split: dict[str, Any],
    folder: Path,
    source: records.RecordSource,
    offsets: np.ndarray,
    num_items: int,
) -> tuple[Boundaries, np.ndarray]:
    """Boundaries and training counts of a split; computed once and kept beside the data."""
    file = folder / f"split-{digest(split)}.npz"
    if file.exists():
        try:
            with np.load(file, allow_pickle=False) as saved:
                return Boundaries(saved["train_end"], saved["validation_end"]), saved["counts"]
        except (KeyError, ValueError, EOFError, zipfile.BadZipFile) as error:
            raise DataError(
                f"{file}: damaged ({error!r}). Remove it, it is computed again"
            ) from error
    users = len(offsets) - 1
    if split["split"] == "last":
        boundaries = splits.last(np.diff(offsets), split["holdout"])
    else:
        times = np.concatenate([record.times for record in read_all(source, users)])
        cuts = splits.cut_times(times, split["validation_time"], split["test_time"])
        boundaries = splits.temporal(offsets, times, *cuts)
    items = (record.items for record in read_all(source, users))
    counts = splits.item_counts(
        track(items, users, "data: counting items"), boundaries.train_end, num_items
    )
    draft = folder / f".{file.stem}-{uuid.uuid4().hex}.npz"  # others may write theirs now
    np.savez(draft, train_end=boundaries[0], validation_end=boundaries[1], counts=counts)
    os.replace(draft, file)
    return boundaries, counts
