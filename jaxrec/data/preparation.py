"""Prepared data: read once, filtered, grouped by user, cached in a folder named by its settings.

    <root>/<dataset>-<digest>/
        complete.json     settings, numbers, digests of the files: written last
        vocabulary.json   raw id of every dense item id
        users.npy         raw id of every dense user index
        offsets.npy       events before each user
        texts.json        item texts, where the source has them
        records/          one array_record record per user (`jaxrec.data.records`)
        split-<digest>.npz  boundaries and training counts of one split

Data is prepared in a temporary folder, which is renamed when it is complete, so an interrupted
preparation is never taken for data. Other settings get another folder.
"""

import contextlib
import dataclasses
import functools
import json
import os
import shutil
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from jaxrec.config import DataConfig, digest
from jaxrec.data import building, datasets, records, splits
from jaxrec.data.digests import Digest, Digests, read_digest
from jaxrec.data.prepared import Ancestor, Prepared, read_all
from jaxrec.data.splits import Boundaries
from jaxrec.data.vocabulary import Vocabulary
from jaxrec.errors import DataError
from jaxrec.runtime.progress import say, track
from jaxrec.types import Json
from jaxrec.untrusted import arrays, json_objects
from jaxrec.untrusted.json_objects import get

FORMAT = 2  # of the content of the folder; part of the data's digest
RECORD = 2  # of the completion record; folders of another one are not looked at
MARKER = "complete.json"
# settings that say where data is and how it is read, and do not change its content
PLACE_KEYS = (
    "cache_dir",
    "workers",
    "worker_processes",
    "prepare_workers",
    "prepare_memory",
    "path",
    "items_path",
)
NEWER_KEYS = ("time_format", "null_values", "user_kind", "item_kind", "quotes")
SPLIT_KEYS = ("split", "holdout", "validation_time", "test_time")


def prepare(
    config: DataConfig, folder: str | os.PathLike[str], engine: building.Engine | None = None
) -> Prepared:
    """Prepares the data set of `config`, or loads it when it is prepared already.

    folder: where prepared data is kept when `config.cache_dir` is empty (`<workdir>/data`).
    engine: does the work (`jaxrec.data.beam`), default: threads of this process. Appended files
        are always read by this process.

    Raises DataError when the source cannot be used or the prepared folder is damaged, naming the
    file, the problem and the remedy.
    """
    root = Path(config.cache_dir or folder)
    root.mkdir(parents=True, exist_ok=True)
    digests = Digests(root)
    try:
        return _prepare(config, root, engine, digests)
    finally:
        digests.save()


def verify(data: Prepared) -> int:
    """Reads all files of prepared data again and returns how many bytes they have.

    Raises DataError naming a file that is not what was written.
    """
    files = _read_marker(data.folder)["files"]
    _check_files(data.folder, files, read_digest)
    return sum(size for size, _ in files.values())


def _prepare(
    config: DataConfig, root: Path, engine: building.Engine | None, digests: Digests
) -> Prepared:
    base: Prepared | None = None
    # each appended file extends the data prepared without it
    for count in range(len(config.append) + 1):
        stage = dataclasses.replace(config, append=config.append[:count])
        settings = _settings(stage, digests)
        key = digest(settings)
        target = root / f"{config.dataset}-{digest(key, RECORD)}"
        if not target.exists():
            with _lock(root / f".lock-{key}"):
                if not target.exists():  # another process may have prepared it meanwhile
                    unchanged = functools.partial(_check_source, stage, settings, digests)
                    _write(stage, settings, target, base, engine, unchanged)
        prepared = _load(stage, key, target, digests)
        base = prepared if base is None else _with_ancestor(base, prepared)
    assert base is not None
    return base


def _with_ancestor(base: Prepared, data: Prepared) -> Prepared:
    """`data` with `base` as its last ancestor. Raises DataError unless it continues `base`."""
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


def _settings(config: DataConfig, file_digest: Digest) -> Json:
    """The settings that decide the content of the folder."""
    settings = dataclasses.asdict(config)
    for name in PLACE_KEYS + SPLIT_KEYS:
        del settings[name]
    for name in ("synthetic", "planted"):
        if config.dataset != name:
            del settings[name]
    for name in NEWER_KEYS:
        if getattr(config, name) == getattr(DataConfig, name):
            del settings[name]  # data of before the key existed keeps its digest
    settings["append"] = [
        datasets.fingerprint(_later(config, path), file_digest) for path in config.append
    ]
    return {"format": FORMAT, "source": datasets.fingerprint(config, file_digest), **settings}


def _check_source(config: DataConfig, settings: Json, file_digest: Digest) -> None:
    """Raises DataError when the source is not any more what its settings were made of."""
    if _settings(config, file_digest) != settings:
        raise DataError(
            f"data.path={config.path!r}: files changed while they were read. Start again when they "
            "are complete"
        )


def _later(config: DataConfig, path: str) -> DataConfig:
    """The configuration that reads an appended path alone."""
    return dataclasses.replace(config, path=path, append=())


def _of_kind(config: DataConfig, base: Prepared) -> DataConfig:
    """The configuration that reads later files of a table: text ids stay text if digits only."""
    if config.dataset != "table":
        return config
    text_users = config.user_kind == "auto" and base.users.dtype.kind == "U"
    text_items = config.item_kind == "auto" and base.vocabulary.ids.dtype.kind == "U"
    return dataclasses.replace(
        config,
        user_kind="text" if text_users else config.user_kind,
        item_kind="text" if text_items else config.item_kind,
    )


@contextlib.contextmanager
def _lock(path: Path) -> Iterator[None]:
    """One preparation at a time; the system releases the lock when its process ends.

    The file is not followed where it is a link, and what it holds is kept.
    """
    import fcntl

    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644)
    except OSError as error:
        raise DataError(f"{path}: cannot be opened: {error.strerror}. Remove it") from error
    with open(descriptor, "rb") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield


def _write(
    config: DataConfig,
    settings: Json,
    target: Path,
    base: Prepared | None,
    engine: building.Engine | None,
    check_source: Callable[[], None],
) -> None:
    draft = target.with_name(f".preparing-{target.name}")
    shutil.rmtree(draft, ignore_errors=True)  # what an interrupted preparation left
    draft.mkdir()
    try:
        say(f"data: reading {config.dataset}")
        reading = config if base is None else _of_kind(_later(config, config.append[-1]), base)
        downloads = target.with_name("downloads")
        raw = datasets.read(reading, downloads)
        if base is None:
            marker = building.build(raw, config, draft, engine or building.Threads(), downloads)
        else:
            marker = building.extend(raw, config, base, draft)
        check_source()
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


def seal(draft: Path, target: Path, marker: Json) -> None:
    """Writes the marker with the digests of all files and renames the folder."""
    files = {
        str(file.relative_to(draft)): [file.stat().st_size, read_digest(file)]
        for file in sorted(draft.rglob("*"))
        if file.is_file()
    }
    content = {**marker, "files": files}
    text = json.dumps({"digest": digest(content), "content": content}, indent=2, sort_keys=True)
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


def _again(folder: Path) -> str:
    return f"Remove the folder to prepare it again: {folder}"


def _read_marker(folder: Path) -> Json:
    """The completion record. Raises DataError when it is missing or not what was written."""
    file = folder / MARKER

    def refuse(text: str) -> DataError:
        return DataError(f"{text}. {_again(folder)}")

    record = json_objects.read(file, refuse)
    content = get(record, "content", dict, str(file), refuse)
    if digest(content) != record.get("digest"):
        raise refuse(f"{file}: damaged, not what was written")
    for name, entry in get(content, "files", dict, str(file), refuse).items():
        json_objects.inside(name, str(file), refuse)
        if not (isinstance(entry, list) and [type(x) for x in entry] == [int, str]):
            raise refuse(f"{file}: damaged: {json_objects.shown(name)} has no size and digest")
    report = get(content, "report", dict, str(file), refuse)
    for key in ("rows", "duplicates", "repeats", "users", "items", "events"):
        json_objects.size(report, key, str(file), refuse, high=2**62)
    median = get(report, "median_events", float, str(file), refuse)
    if not 0 <= median <= report["events"]:
        raise refuse(f"{file}: damaged: median_events={json_objects.shown(median)}")
    get(content, "time_origin", int, str(file), refuse)
    json_objects.texts(get(content, "event_types", list, str(file), refuse), str(file), refuse)
    return content


def _check_files(folder: Path, files: Json, file_digest: Digest) -> None:
    """Raises DataError naming the file that is not what the completion record says."""
    for name, (size, written) in files.items():
        file = folder / name
        actual = file.stat().st_size if file.is_file() else None
        if actual != size:
            state = "is missing" if actual is None else f"has {actual} bytes"
            raise DataError(f"{file} {state}, it was written with {size} bytes. {_again(folder)}")
        if file_digest(file) != written:
            raise DataError(f"{file}: damaged, it is not what was written. {_again(folder)}")


def _load(config: DataConfig, key: str, folder: Path, file_digest: Digest) -> Prepared:
    marker = _read_marker(folder)
    _check_files(folder, marker["files"], file_digest)
    vocabulary, users, offsets = _read_arrays(folder, marker["report"])
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


def _read_arrays(folder: Path, report: Json) -> tuple[Vocabulary, np.ndarray, np.ndarray]:
    """Vocabulary, users and offsets, as many as the report says. Raises DataError."""

    def refuse(text: str) -> DataError:
        return DataError(f"{text}. {_again(folder)}")

    try:
        vocabulary = Vocabulary.load(folder / "vocabulary.json")
    except DataError as error:
        raise refuse(str(error)) from error
    users = arrays.read_npy(folder / "users.npy", refuse)
    offsets = arrays.read_npy(folder / "offsets.npy", refuse)
    if len(vocabulary) != report["items"]:
        raise refuse(f"{folder / 'vocabulary.json'}: damaged: not {report['items']} items")
    if users.shape != (report["users"],) or users.dtype.kind not in "iU":
        raise refuse(f"{folder / 'users.npy'}: damaged: not the ids of {report['users']} users")
    if (
        (offsets.shape, offsets.dtype) != ((len(users) + 1,), np.int64)
        or (int(offsets[0]), int(offsets[-1])) != (0, report["events"])
        or (np.diff(offsets) < 0).any()
    ):
        raise refuse(f"{folder / 'offsets.npy'}: damaged: no offsets of {report['events']} events")
    return vocabulary, users, offsets


def _split(
    split: Json,
    folder: Path,
    source: records.RecordSource,
    offsets: np.ndarray,
    num_items: int,
) -> tuple[Boundaries, np.ndarray]:
    """Boundaries and training counts of a split, cached beside the data."""
    file = folder / f"split-{digest(split)}.npz"
    users = len(offsets) - 1
    if file.exists():
        return _read_split(file, users, num_items)
    if split["split"] == "last":
        boundaries = splits.last(np.diff(offsets), split["holdout"])
    else:
        times = np.concatenate([record.times for record in read_all(source, users)])
        cuts = splits.cut_times(times, split["validation_time"], split["test_time"])
        boundaries = splits.temporal(offsets, times, *cuts)
    items = (record.items for record in read_all(source, users))
    counts = splits.item_counts(
        track(items, users, "data: counting the items of users"), boundaries.train_end, num_items
    )
    draft = folder / f".{file.stem}-{uuid.uuid4().hex}.npz"  # others may write theirs now
    np.savez(draft, train_end=boundaries[0], validation_end=boundaries[1], counts=counts)
    os.replace(draft, file)
    return boundaries, counts


def _read_split(file: Path, users: int, num_items: int) -> tuple[Boundaries, np.ndarray]:
    """What `_split` cached. Raises DataError for anything else."""

    def refuse(text: str) -> DataError:
        return DataError(f"{text}. Remove it, it is computed again")

    saved = arrays.read_npz(file, refuse, "train_end", "validation_end", "counts")
    needed = {"train_end": users, "validation_end": users, "counts": num_items + 1}
    for name, length in needed.items():
        if saved[name].shape != (length,) or saved[name].dtype != np.int64:
            raise refuse(f"{file}: damaged: {name} is not one of {length} integers")
    return Boundaries(saved["train_end"], saved["validation_end"]), saved["counts"]
