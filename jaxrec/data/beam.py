"""Preparation of data on Apache Beam workers, for tables that one machine cannot read in time.

    jaxrec prepare --config=... --workdir=... --beam

Runs the functions of `jaxrec.data.building` and gives the same bytes:

  read    a task per file checks its rows and writes them, with dictionaries of their ids, into
          chunk files; the ids of all files are merged in a tree (CombinePerKey)
  sort    a task per chunk distributes its rows to buckets of whole users, GroupByKey collects each
          bucket, and a task sorts it
  filter, write    a task per bucket (`Pool.each`)

Workers and the launching process share the input files and the scratch folder, which is below
`data.cache_dir` on a shared disk. A worker holds one chunk or one bucket at a time; workers of
`sort` and the launching process also hold the distinct ids.
"""

import functools
import pickle
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias, TypeVar

import numpy as np

from jaxrec.config import DataConfig
from jaxrec.data import datasets, sorting
from jaxrec.data.datasets.column_kinds import conversion
from jaxrec.data.ingest import EventTypes, Read, check, check_whole
from jaxrec.data.raw import Raw
from jaxrec.data.sorting import Sorted
from jaxrec.errors import DataError
from jaxrec.runtime.progress import say

if TYPE_CHECKING:
    import apache_beam as beam

T = TypeVar("T")
IdCounts: TypeAlias = tuple[np.ndarray, np.ndarray]  # distinct ids, sorted, and their counts
Rows: TypeAlias = tuple[int, int, dict[str, np.ndarray]]  # (part, chunk, columns)
IDS = ("user", "item")
RUNNER = "--runner=FnApiRunner"  # in this process; DirectRunner first looks for another on the net


class Part(NamedTuple):
    """What was read of one file.

    source: its name. kinds: its columns and their types as text. sizes: rows of its chunk files.
    columns: dtypes of the chunk files. ids: dtype kind of users and items. rows: how many were
    read; dropped: incomplete ones. names: event types in order of appearance. seen: all types that
    occur. first, last: earliest and latest time.
    """

    source: str
    kinds: str
    sizes: list[int]
    columns: dict[str, type]
    ids: dict[str, str]
    rows: int
    dropped: int
    names: tuple[str, ...]
    seen: frozenset[str]
    first: int
    last: int


@dataclass
class Pool:
    """An `Engine` of `jaxrec.data.building` that runs Beam pipelines.

    options: flags of the pipelines. scratch: folder of the tasks' results; set by `sort`.
    """

    options: Sequence[str] = (RUNNER,)
    scratch: Path = Path()

    def sort(
        self, raw: Raw, config: DataConfig, scratch: Path, downloads: Path
    ) -> tuple[Read, Sorted]:
        """All events in sorted buckets below `scratch`. Raises DataError."""
        self.scratch = scratch
        chunks, buckets = scratch / "chunks", scratch / "buckets"
        for folder in (chunks, buckets):
            folder.mkdir(parents=True)
        parts = datasets.parts(config)
        say(f"data: reading {len(parts)} files with Beam")
        files: list[Part] = list(self._read(_Read(parts, downloads, chunks), len(parts)))
        _check_columns([file for file in files if file.rows], _kind_keys(config, raw))
        types = EventTypes(config.event_types)
        for file in files:
            for name in file.names:
                types.numbers.setdefault(name, len(types.numbers))
            types.seen |= file.seen
        rows, kept = sum(file.rows for file in files), sum(sum(file.sizes) for file in files)
        first, last = min(file.first for file in files), max(file.last for file in files)
        check_whole(raw, types, rows, sum(file.dropped for file in files), kept, first, last)
        types.check_number(raw.source, raw.names.event)
        _check_ids([file for file in files if file.sizes], raw)
        (users, counts), (items, _) = (_merged(chunks, name) for name in IDS)
        columns: dict[str, type] = {}
        for file in files:
            columns |= file.columns
        bounds = sorting.bounds_of(counts)
        deal = _Deal(chunks, [file.sizes for file in files], [file.names for file in files])
        deal = replace(deal, types=types.names, columns=columns, first=first, bounds=bounds)
        arrange = _Arrange(buckets, bounds, config.duplicates, config.repeats)
        dropped = np.asarray(list(self._shuffle(deal, arrange)))
        say(f"data: sorted {kept:,} events in {len(bounds) - 1} buckets")
        copies, repeats = dropped.sum(0).tolist()
        read = Read(users, items, rows, types.names, first)
        return read, Sorted(buckets, bounds, copies, repeats)

    def each(
        self, function: Callable[[int], T], count: int, workers: int, label: str, events: int = 0
    ) -> Iterator[T]:
        """`function(0..count-1)` in tasks, results in order; Beam decides on `workers`."""
        import apache_beam as beam

        place = self._place(function)
        with self._pipeline() as pipeline:
            (
                pipeline
                | beam.Create(range(count))
                | beam.Reshuffle()
                | label >> beam.Map(_call, str(place))
            )
        return _results(place, count)

    def _read(self, read: "_Read", count: int) -> Iterator[Part]:
        import apache_beam as beam

        place = self._place(read)
        with self._pipeline() as pipeline:
            (
                pipeline
                | beam.Create(range(count))
                | beam.Reshuffle()
                | "read" >> beam.FlatMap(_call_for_ids, str(place))
                | "merge ids" >> beam.CombinePerKey(merge_ids)
                | "keep ids" >> beam.Map(_save_ids, str(read.chunks))
            )
        return _results(place, count)

    def _shuffle(self, deal: "_Deal", arrange: "_Arrange") -> Iterator[tuple[int, int]]:
        import apache_beam as beam

        dealt, arranged = self._place(deal), self._place(arrange)
        chunks = [(p, c) for p, sizes in enumerate(deal.sizes) for c in range(len(sizes))]
        with self._pipeline() as pipeline:
            (
                pipeline
                | beam.Create(chunks)
                | beam.Reshuffle()
                | "deal" >> beam.FlatMap(_call_each, str(dealt))
                | beam.GroupByKey()
                | "sort" >> beam.Map(_call_bucket, str(arranged))
            )
        return _results(arranged, len(arrange.bounds) - 1)

    def _pipeline(self) -> "beam.Pipeline":
        import apache_beam as beam
        from apache_beam.options.pipeline_options import PipelineOptions

        return beam.Pipeline(options=PipelineOptions(list(self.options)))

    def _place(self, function: Callable[..., object]) -> Path:
        """A folder with the function, so that its arrays are not part of the pipeline's graph."""
        import cloudpickle

        place = self.scratch / f"tasks-{uuid.uuid4().hex}"
        place.mkdir(parents=True)
        (place / "function").write_bytes(cloudpickle.dumps(function))
        return place


# -- what workers run ------------------------------------------------------------------------------


@functools.lru_cache(maxsize=2)  # one while the next is loaded
def _function(place: str) -> Callable[..., Any]:
    return pickle.loads((Path(place) / "function").read_bytes())


def _keep(place: str, index: int, value: object) -> None:
    """Writes a result for the launching process; a repeated task writes the same again."""
    draft = Path(place) / f".{index}-{uuid.uuid4().hex}"
    draft.write_bytes(pickle.dumps(value))
    draft.rename(Path(place) / str(index))


def _results(place: Path, count: int) -> Iterator[Any]:
    """Results in order; a task's DataError is raised here, since Beam would hide its message."""
    for index in range(count):
        value = pickle.loads((place / str(index)).read_bytes())
        if isinstance(value, DataError):
            raise value
        yield value


def _call(index: int, place: str) -> None:
    try:
        value = _function(place)(index)
    except DataError as error:
        value = error
    _keep(place, index, value)


def _call_for_ids(index: int, place: str) -> Iterator[tuple[str, IdCounts]]:
    try:
        part, ids = _function(place)(index)
    except DataError as error:
        part, ids = error, {}
    _keep(place, index, part)
    # texts and numbers are merged separately: a table with both is refused after the merge
    for name, (values, counts) in ids.items():
        yield f"{name}-{values.dtype.kind}", (values, counts)


def _call_each(chunk: tuple[int, int], place: str) -> Iterator[tuple[int, Rows]]:
    yield from _function(place)(*chunk)


def _call_bucket(group: tuple[int, Iterable[Rows]], place: str) -> None:
    bucket, rows = group
    _keep(place, bucket, _function(place)(bucket, rows))


def merge_ids(parts: Iterable[IdCounts]) -> IdCounts:
    """Distinct ids of all parts, sorted, and the sums of their counts, int64 [K] each."""
    pairs = [(ids, counts) for ids, counts in parts if len(ids)]
    if not pairs:
        return np.zeros(0, np.int64), np.zeros(0, np.int64)
    ids, index = np.unique(np.concatenate([ids for ids, _ in pairs]), return_inverse=True)
    counts = np.zeros(len(ids), np.int64)
    np.add.at(counts, index, np.concatenate([counts for _, counts in pairs]))
    return ids, counts


def _save_ids(merged: tuple[str, IdCounts], folder: str) -> None:
    name, (ids, counts) = merged
    np.savez(Path(folder) / f"ids-{name}.npz", ids=ids, counts=counts)


def _merged(chunks: Path, name: str) -> IdCounts:
    """Distinct ids of all files, sorted, and the rows of each."""
    [file] = chunks.glob(f"ids-{name}-*.npz")
    with np.load(file, allow_pickle=False) as saved:
        return saved["ids"], saved["counts"]


def _kind_keys(config: DataConfig, raw: Raw) -> dict[str, str]:
    """Columns of ids -> the key that says their kind, where there is one."""
    if config.dataset != "table":
        return {}
    return {raw.names.user: "data.user_kind", raw.names.item: "data.item_kind"}


def _check_columns(parts: list[Part], keys: Mapping[str, str]) -> None:
    """Raises DataError unless all files have the same columns and types; keys: `_kind_keys`."""
    for part in parts[1:]:
        if part.kinds != parts[0].kinds:
            same = set(part.kinds.split(", ")) & set(parts[0].kinds.split(", "))
            known = {pair.partition(" ")[0] for pair in same}
            advice = conversion([column for column in keys if column not in known], keys)
            raise DataError(
                f"{part.source}: column types {part.kinds} differ from those of "
                f"{parts[0].source}: {parts[0].kinds}. {advice}"
            )


def _check_ids(parts: list[Part], raw: Raw) -> None:
    """Raises DataError unless all files have integers, or all have text, in a column of ids."""
    for name in IDS:
        first = parts[0].ids[name]
        other = next((part for part in parts if part.ids[name] != first), None)
        if other is not None:
            here, before = ("integers", "text") if first == "U" else ("text", "integers")
            raise DataError(
                f"{other.source}: ids of column {getattr(raw.names, name)!r} are {here}, those of "
                f"the files before it {before}. Convert one of them, or set "
                f"data.{name}_kind=text (table)"
            )


@dataclass(frozen=True)
class _Read:
    """Reads part `index` into chunk files `<part>.<chunk>.npz`; returns its `Part` and its ids."""

    parts: Sequence[DataConfig]
    downloads: Path
    chunks: Path

    def __call__(self, index: int) -> tuple[Part, dict[str, IdCounts]]:
        config = self.parts[index]
        raw = datasets.read(config, self.downloads)
        types, sizes, kinds = EventTypes(config.event_types), list[int](), dict[str, str]()
        column_kinds = ""
        columns: dict[str, type] = {}
        ids: dict[str, list[IdCounts]] = {name: [] for name in IDS}
        rows, dropped, first, last = 0, 0, 2**63 - 1, -1
        for chunk in raw.chunks():
            if not len(chunk.frame):
                continue
            rows += len(chunk.frame)
            column_kinds = column_kinds or chunk.kinds
            spill, missing = check(chunk, raw, types, config.incomplete)
            dropped += missing
            if not len(spill["time"]):
                continue
            for name in IDS:
                values = np.asarray(spill[name])
                values = values.astype(np.str_) if values.dtype.kind == "O" else values
                known, spill[name], counts = np.unique(
                    values, return_inverse=True, return_counts=True
                )
                spill[f"{name} ids"] = known
                if kinds.setdefault(name, known.dtype.kind) != known.dtype.kind:
                    raise DataError(
                        f"{chunk.source}: column {getattr(raw.names, name)!r} holds integers and "
                        "text. Convert one of them"
                    )
                ids[name].append((known, counts))
            first = min(first, int(spill["time"].min()))
            last = max(last, int(spill["time"].max()))
            plain = {name: values for name, values in spill.items() if not name.endswith(" ids")}
            columns |= {name: values.dtype.type for name, values in plain.items()}
            np.savez(self.chunks / f"{index}.{len(sizes)}.npz", **spill)
            sizes.append(len(spill["time"]))
        part = Part(
            source=config.path,
            kinds=column_kinds,
            sizes=sizes,
            columns=columns,
            ids=kinds,
            rows=rows,
            dropped=dropped,
            names=types.names,
            seen=frozenset(types.seen),
            first=first,
            last=last,
        )
        return part, {name: merge_ids(pairs) for name, pairs in ids.items() if pairs}


@dataclass(frozen=True)
class _Deal:
    """The rows of a chunk file by bucket.

    names: event types of each part, in the order of its numbers. types: those of all parts.
    """

    chunks: Path
    sizes: list[list[int]]
    names: list[tuple[str, ...]]
    types: tuple[str, ...] = ()
    columns: dict[str, type] | None = None
    first: int = 0
    bounds: np.ndarray | None = None

    def __call__(self, part: int, chunk: int) -> Iterator[tuple[int, Rows]]:
        bounds, kinds = self.bounds, self.columns
        assert bounds is not None
        assert kinds is not None
        with np.load(self.chunks / f"{part}.{chunk}.npz", allow_pickle=False) as saved:
            rows = {name: saved[name] for name in saved.files}
        for name in IDS:
            place = np.searchsorted(_known(str(self.chunks), name), rows.pop(f"{name} ids"))
            rows[name] = place[rows[name]].astype(np.int32)
        rows["time"] = (rows["time"] - self.first).astype(np.int32)
        if "event" in rows and self.names[part]:
            numbers = np.asarray([self.types.index(n) for n in self.names[part]], np.uint8)
            rows["event"] = numbers[rows["event"]]
        for name, kind in kinds.items():  # columns that only other files have
            rows.setdefault(name, np.zeros(len(rows["time"]), kind))
        bucket = np.searchsorted(bounds[1:-1], rows["user"], side="right")
        order = np.argsort(bucket, kind="stable")
        ends = np.cumsum(np.bincount(bucket, minlength=len(bounds) - 1))
        for target in np.unique(bucket).tolist():
            members = order[(ends[target - 1] if target else 0) : ends[target]]
            yield target, (part, chunk, {name: values[members] for name, values in rows.items()})


@dataclass(frozen=True)
class _Arrange:
    """Sorts and saves a bucket; returns how many rows were duplicates and repeats."""

    folder: Path
    bounds: np.ndarray
    duplicates: str
    repeats: str

    def __call__(self, bucket: int, groups: Iterable[Rows]) -> tuple[int, int]:
        parts = sorted(groups, key=lambda group: group[:2])  # input order
        rows = {n: np.concatenate([columns[n] for _, _, columns in parts]) for n in parts[0][2]}
        first, stop = int(self.bounds[bucket]), int(self.bounds[bucket + 1])
        rows["user"] = rows["user"].astype(np.int32) - np.int32(first)
        events, copies, dropped = sorting.arrange(rows, stop - first, self.duplicates, self.repeats)
        sorting.save(events, self.folder, bucket)
        return copies, dropped


@functools.lru_cache(maxsize=2)  # per worker: users and items
def _known(chunks: str, name: str) -> np.ndarray:
    """All distinct ids, sorted."""
    return _merged(Path(chunks), name)[0]
