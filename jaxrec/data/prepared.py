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
import json
import os
import shutil
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from jaxrec.config import DataConfig, digest
from jaxrec.data import datasets, histories, records, splits
from jaxrec.data.histories import Histories
from jaxrec.data.progress import say, track
from jaxrec.data.schema import DataError, ItemTexts, Vocabulary
from jaxrec.data.splits import Boundaries

FORMAT = 1  # of the folder; raise it when its content changes
MARKER = "complete.json"
# settings that say how data is kept, loaded or found, not what it is
ELSEWHERE = ("cache_dir", "workers", "worker_processes", "path", "items_path")
SPLIT_KEYS = ("split", "holdout", "validation_time", "test_time")


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


def prepare(config: DataConfig, folder: str | os.PathLike[str]) -> Prepared:
    """Prepares the data set of `config`, or loads it when it already is.

    folder: where prepared data is kept when `config.cache_dir` is empty (`<workdir>/data`).

    Raises DataError when the source cannot be used or the prepared folder is damaged, naming
    the file, what was found and what to do.
    """
    root = Path(config.cache_dir or folder)
    settings = _settings(config)
    key = digest(settings)
    target = root / f"{config.dataset}-{key}"
    if not target.exists():
        root.mkdir(parents=True, exist_ok=True)
        with _lock(root / f".lock-{key}"):
            if not target.exists():  # another process may have prepared it meanwhile
                _write(config, settings, target)
    return _load(config, key, target)


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
    return {"format": FORMAT, "source": datasets.fingerprint(config), **settings}


@contextlib.contextmanager
def _lock(path: Path) -> Iterator[None]:
    """One preparation at a time; the system releases the lock when its process ends."""
    import fcntl

    with path.open("w") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield


def _write(config: DataConfig, settings: dict[str, Any], target: Path) -> None:
    draft = target.with_name(f".preparing-{target.name}")
    shutil.rmtree(draft, ignore_errors=True)  # what an interrupted preparation left
    draft.mkdir()
    try:
        say(f"data: reading {config.dataset}")
        raw = datasets.read(config, target.with_name("downloads"))
        table = raw.interactions
        built, vocabulary, origin = histories.build(
            table, config.min_item_events, config.min_user_events, raw.source
        )
        records.write(built, draft / "records")
        shutil.rmtree(draft / "records" / "downloads", ignore_errors=True)
        vocabulary.save(draft / "vocabulary.json")
        np.save(draft / "users.npy", built.users, allow_pickle=False)
        np.save(draft / "offsets.npy", built.offsets, allow_pickle=False)
        if raw.texts is not None:
            texts = json.dumps(align_texts(raw.texts, vocabulary), ensure_ascii=False)
            (draft / "texts.json").write_text(texts, encoding="utf-8")
        marker = {
            "settings": settings,
            "time_origin": origin,
            "report": {
                "rows": len(table),
                "duplicates": table.duplicates,
                "users": len(built),
                "items": len(vocabulary),
                "events": len(built.items),
                "median_events": float(np.median(built.lengths)),
            },
            "files": {
                str(file.relative_to(draft)): file.stat().st_size
                for file in sorted(draft.rglob("*"))
                if file.is_file()
            },
        }
        (draft / MARKER).write_text(json.dumps(marker, indent=2, sort_keys=True))
        for file in draft.rglob("*"):
            if file.is_file():
                _sync(file)
        os.rename(draft, target)
        _sync(target.parent)
    except BaseException:
        shutil.rmtree(draft, ignore_errors=True)
        raise


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def align_texts(texts: ItemTexts, vocabulary: Vocabulary) -> dict[str, list[str]]:
    """Column -> text of dense ids 0..V; a missing text or item is empty, the first row wins."""
    if not len(texts.ids):
        return {name: [""] * (len(vocabulary) + 1) for name in texts.columns}
    dense = vocabulary.encode(texts.ids)
    rows = np.flatnonzero(dense)[::-1]  # backwards, so that the first row is written last
    missing = len(vocabulary) - len(np.unique(dense[rows]))
    if missing:
        say(f"data: {missing:,} of {len(vocabulary):,} items have no row in the items table")
    aligned = {}
    for name, values in texts.columns.items():
        column = [""] * (len(vocabulary) + 1)
        for row in rows:
            value = values[row]
            # null, or NaN where a numeric column has nulls
            column[dense[row]] = "" if value is None or value != value else str(value)
        aligned[name] = column
    return aligned


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
    draft = folder / f".{file.stem}-{os.getpid()}.npz"
    np.savez(draft, train_end=boundaries[0], validation_end=boundaries[1], counts=counts)
    os.replace(draft, file)
    return boundaries, counts
