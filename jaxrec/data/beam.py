"""The preparation on Apache Beam workers, for tables that one machine cannot read in time.

    python -m jaxrec.cli.prepare --config=... --workdir=... --beam="--runner=FnApiRunner"

The same functions as in `jaxrec.data.building`, run by other means, give the same bytes:

  read    a task for each file checks its rows and writes them, with dictionaries of their ids,
          into chunk files; the ids of all files are merged in a tree (CombinePerKey)
  sort    a task for each chunk deals its rows to buckets of whole users, GroupByKey brings a
          bucket together, and a task sorts it
  filter, write    a task for each bucket (`Pool.each`)

Workers and the launching process share the scratch folder (a disk that all of them see, below
`data.cache_dir`) and the input files. One worker holds one chunk or one bucket at a time; every
worker of `sort` and the launching process hold the distinct ids.
"""

import functools
import pickle
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxrec.config import DataConfig
from jaxrec.data import datasets, sorting
from jaxrec.data.ingest import EventTypes, Read, check, check_whole
from jaxrec.data.progress import say
from jaxrec.data.raw import Raw
from jaxrec.data.sorting import Sorted
from jaxrec.errors import DataError

IDS = ("user", "item")
RUNNER = "--runner=FnApiRunner"  # in this process; DirectRunner first asks the net for another one


class Part(NamedTuple):
    """What was read of one file. kinds: types of its columns in words; sizes: rows of its chunk
    files; columns: their dtypes; names: event types in the order in which they came up; found: all
    types that occur."""

    source: str
    kinds: str
    sizes: list[int]
    columns: dict[str, type]
    ids: dict[str, str]
    rows: int
    dropped: int
    names: tuple[str, ...]
    found: frozenset[str]
    first: int
    last: int


@dataclass
class Pool:
    """An `Engine` of `jaxrec.data.building`. options: flags of Beam's pipelines.

    scratch: folder of results that tasks hand over; set by `sort`.
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
        found: list[Part] = list(self._read(_Read(parts, downloads, chunks), len(parts)))
        _check_columns([part for part in found if part.rows])
        types = EventTypes(config.event_types)
        for part in found:
            for name in part.names:
                types.known.setdefault(name, len(types.known))
            types.found |= part.found
        rows, kept = sum(part.rows for part in found), sum(sum(part.sizes) for part in found)
        first, last = min(part.first for part in found), max(part.last for part in found)
        check_whole(raw, types, rows, sum(part.dropped for part in found), kept, first, last)
        types.check_number(raw.source, raw.names.event)
        _check_ids([part for part in found if part.sizes], raw)
        (users, counts), (items, _) = (_merged(chunks, name) for name in IDS)
        columns: dict[str, type] = {}
        for part in found:
            columns |= part.columns
        bounds = sorting.bounds_of(counts)
        deal = _Deal(chunks, [part.sizes for part in found], [part.names for part in found])
        deal = replace(deal, types=types.names, columns=columns, first=first, bounds=bounds)
        arrange = _Arrange(buckets, bounds, config.duplicates, config.repeats)
        dropped = np.asarray(list(self._shuffle(deal, arrange)))
        say(f"data: sorted {kept:,} events in {len(bounds) - 1} buckets")
        copies, repeats = dropped.sum(0).tolist()
        read = Read(users, items, rows, types.names, first)
        return read, Sorted(buckets, bounds, copies, repeats)

    def each(
        self, function: Callable[[int], Any], count: int, workers: int, label: str, events: int = 0
    ) -> Iterator[Any]:
        """`function(0..count-1)` by tasks of a pipeline, results in order. workers: Beam's own."""
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

    def _pipeline(self) -> Any:
        import apache_beam as beam
        from apache_beam.options.pipeline_options import PipelineOptions

        return beam.Pipeline(options=PipelineOptions(list(self.options)))

    def _place(self, function: Any) -> Path:
        """A folder with the function: arrays it needs do not travel in the pipeline's graph."""
        import cloudpickle

        place = self.scratch / f"tasks-{uuid.uuid4().hex}"
        place.mkdir(parents=True)
        (place / "function").write_bytes(cloudpickle.dumps(function))
        return place


# -- what workers run ------------------------------------------------------------------------------


@functools.lru_cache(maxsize=2)  # one while the next is loaded
def _function(place: str) -> Any:
    return pickle.loads((Path(place) / "function").read_bytes())


def _keep(place: str, index: int, value: Any) -> None:
    """A result for the launching process; a task that is run twice writes the same twice."""
    draft = Path(place) / f".{index}-{uuid.uuid4().hex}"
    draft.write_bytes(pickle.dumps(value))
    draft.rename(Path(place) / str(index))


def _results(place: Path, count: int) -> Iterator[Any]:
    """In order; a DataError of a task is raised here, as Beam would hide its message."""
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


def _call_for_ids(index: int, place: str) -> Iterator[Any]:
    try:
        part, ids = _function(place)(index)
    except DataError as error:
        part, ids = error, {}
    _keep(place, index, part)
    # text and numbers do not meet in one array: a table with both is refused behind the merge
    for name, (values, counts) in ids.items():
        yield f"{name}-{values.dtype.kind}", (values, counts)


def _call_each(chunk: tuple[int, int], place: str) -> Iterator[Any]:
    yield from _function(place)(*chunk)


def _call_bucket(group: tuple[int, Iterable[Any]], place: str) -> None:
    bucket, rows = group
    _keep(place, bucket, _function(place)(bucket, rows))


def merge_ids(parts: Iterable[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    """Distinct ids of all parts, sorted, and the sums of their counts."""
    pairs = [(ids, counts) for ids, counts in parts if len(ids)]
    if not pairs:
        return np.zeros(0, np.int64), np.zeros(0, np.int64)
    ids, index = np.unique(np.concatenate([ids for ids, _ in pairs]), return_inverse=True)
    counts = np.zeros(len(ids), np.int64)
    np.add.at(counts, index, np.concatenate([counts for _, counts in pairs]))
    return ids, counts


def _save_ids(found: tuple[str, Any], folder: str) -> None:
    name, (ids, counts) = found
    np.savez(Path(folder) / f"ids-{name}.npz", ids=ids, counts=counts)


def _merged(chunks: Path, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Distinct ids of all files, sorted, and how many rows each has."""
    [file] = chunks.glob(f"ids-{name}-*.npz")
    with np.load(file, allow_pickle=False) as saved:
        return saved["ids"], saved["counts"]


def _check_columns(parts: list[Part]) -> None:
    """What a reader of all files checks while it reads."""
    for part in parts[1:]:
        if part.kinds != parts[0].kinds:
            raise DataError(
                f"{part.source}: column types {part.kinds} differ from those of "
                f"{parts[0].source}: {parts[0].kinds}. Convert one of them"
            )


def _check_ids(parts: list[Part], raw: Raw) -> None:
    for name in IDS:
        first = parts[0].ids[name]
        other = next((part for part in parts if part.ids[name] != first), None)
        if other is not None:
            found, before = ("integers", "text") if first == "U" else ("text", "integers")
            raise DataError(
                f"{other.source}: ids of column {getattr(raw.names, name)!r} are {found}, those of "
                f"the files before it {before}. Convert one of them"
            )


@dataclass(frozen=True)
class _Read:
    """Reads part `index`: chunk files `<part>.<chunk>.npz` and what `Part` says."""

    parts: Sequence[DataConfig]
    downloads: Path
    chunks: Path

    def __call__(self, index: int) -> tuple[Part, dict[str, Any]]:
        config = self.parts[index]
        raw = datasets.read(config, self.downloads)
        types, sizes, kinds = EventTypes(config.event_types), list[int](), dict[str, str]()
        words = ""
        columns: dict[str, type] = {}
        ids: dict[str, list[Any]] = {name: [] for name in IDS}
        rows, dropped, first, last = 0, 0, 2**63 - 1, -1
        for chunk in raw.chunks():
            if not len(chunk.frame):
                continue
            rows += len(chunk.frame)
            words = words or chunk.kinds
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
        names, found = types.names, frozenset(types.found)
        found_here = rows, dropped, names, found, first, last
        part = Part(config.path, words, sizes, columns, kinds, *found_here)
        return part, {name: merge_ids(pairs) for name, pairs in ids.items() if pairs}


@dataclass(frozen=True)
class _Deal:
    """The rows of a chunk file by bucket: (bucket, (part, chunk, columns)). `names`: event types of
    each part's numbers; `types`: those of all."""

    chunks: Path
    sizes: list[list[int]]
    names: list[tuple[str, ...]]
    types: tuple[str, ...] = ()
    columns: dict[str, type] | None = None
    first: int = 0
    bounds: np.ndarray | None = None

    def __call__(self, part: int, chunk: int) -> Iterator[tuple[int, Any]]:
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
        for name, kind in kinds.items():  # what other files have
            rows.setdefault(name, np.zeros(len(rows["time"]), kind))
        bucket = np.searchsorted(bounds[1:-1], rows["user"], side="right")
        order = np.argsort(bucket, kind="stable")
        ends = np.cumsum(np.bincount(bucket, minlength=len(bounds) - 1))
        for target in np.unique(bucket).tolist():
            chosen = order[(ends[target - 1] if target else 0) : ends[target]]
            yield target, (part, chunk, {name: values[chosen] for name, values in rows.items()})


@dataclass(frozen=True)
class _Arrange:
    """Sorts and saves a bucket; returns how many rows were duplicates and repeats."""

    folder: Path
    bounds: np.ndarray
    duplicates: str
    repeats: str

    def __call__(self, bucket: int, groups: Iterable[Any]) -> tuple[int, int]:
        parts = sorted(groups, key=lambda group: group[:2])  # input order
        rows = {n: np.concatenate([columns[n] for _, _, columns in parts]) for n in parts[0][2]}
        first, stop = int(self.bounds[bucket]), int(self.bounds[bucket + 1])
        rows["user"] = rows["user"].astype(np.int32) - np.int32(first)
        found = sorting.arrange(rows, stop - first, self.duplicates, self.repeats)
        sorting.save(found[0], self.folder, bucket)
        return found[1], found[2]


@functools.lru_cache(maxsize=2)  # of a worker: users and items
def _known(chunks: str, name: str) -> np.ndarray:
    """All distinct ids, sorted."""
    return _merged(Path(chunks), name)[0]
