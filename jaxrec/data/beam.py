"""Preparation of data on Apache Beam workers, for tables that one machine cannot read in time.

    jaxrec prepare --config=... --workdir=... --beam

Runs the functions of `jaxrec.data.building` and gives the same bytes:

  read    a task per file checks its rows and writes them, and its distinct ids, into files
  sort    a task per chunk distributes its rows to buckets of whole users, GroupByKey collects each
          bucket, and a task sorts it
  write   a task per bucket (`Pool.each`)

The launching process merges the ids of the files and counts users and items for the filters.
Workers and the launching process share the input files and the scratch folder, which is below
`data.cache_dir` on a shared disk. A worker holds one chunk or one bucket at a time, beside what
`data.prepare_memory` allows.
"""

import functools
import pickle
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

import numpy as np

from jaxrec.config import DataConfig
from jaxrec.data import database, datasets, sorting
from jaxrec.data.datasets.column_kinds import conversion
from jaxrec.data.ingest import EventTypes, Part, Read, check_whole, ingest
from jaxrec.data.raw import Raw
from jaxrec.data.sorting import Sorted
from jaxrec.errors import DataError
from jaxrec.runtime.progress import say

if TYPE_CHECKING:
    import apache_beam as beam

T = TypeVar("T")
Rows: TypeAlias = dict[str, np.ndarray]  # name -> column
IDS = ("user", "item")
RUNNER = "--runner=FnApiRunner"  # in this process; DirectRunner first looks for another on the net


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
        for name in ("chunks", "ids", "buckets"):
            (scratch / name).mkdir(parents=True)
        files = datasets.parts(config)
        say(f"data: reading {len(files)} files with Beam")
        reading = _Read(files, downloads, scratch)
        parts: list[Part] = list(self.each(reading, len(files), 0, "read"))
        _check_columns([part for part in parts if part.rows], _kind_keys(config, raw))
        types = EventTypes(config.event_types)
        check_whole(raw, parts, types)
        first, last = min(part.first for part in parts), max(part.last for part in parts)
        memory = config.prepare_memory
        with database.opened(
            scratch, threads=config.prepare_workers, megabytes=memory
        ) as connection:
            (users, counts), (items, _) = (
                sorting.rank(
                    connection,
                    f"FROM {database.parquet(scratch / 'ids', pattern=f'{name}-*')}",
                    sorting.id_file(scratch, name),
                )
                for name in IDS
            )
        bounds = sorting.bounds_of(counts)
        targets = [scratch / "buckets" / f"{bucket}.parquet" for bucket in range(len(bounds) - 1)]
        columns = sorted(set().union(*(part.columns for part in parts)))
        deal = _Deal(scratch, parts, types.names, columns, first, bounds, memory)
        arrange = _Arrange(targets, bounds, columns, config.duplicates, config.repeats, memory)
        dropped = np.asarray(list(self._shuffle(deal, arrange)))
        say(f"data: sorted {sum(part.kept for part in parts):,} events in {len(targets)} buckets")
        copies, repeats = dropped.sum(0).tolist()
        rows = sum(part.rows for part in parts)
        read = Read(users, items, rows, types.names, first, last)
        return read, Sorted(targets, bounds, copies, repeats)

    def each(
        self, function: Callable[[int], T], count: int, workers: int, label: str
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

    def _shuffle(self, deal: "_Deal", arrange: "_Arrange") -> Iterator[tuple[int, int]]:
        import apache_beam as beam

        dealt, arranged = self._place(deal), self._place(arrange)
        chunks = [(p, c) for p, part in enumerate(deal.parts) for c in range(part.chunks)]
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


def _call_each(chunk: tuple[int, int], place: str) -> Iterator[tuple[int, Rows]]:
    yield from _function(place)(*chunk)


def _call_bucket(group: tuple[int, Iterable[Rows]], place: str) -> None:
    bucket, rows = group
    _keep(place, bucket, _function(place)(bucket, rows))


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


@dataclass(frozen=True)
class _Read:
    """Reads part `index` into chunk files, and its distinct ids into files of their own."""

    parts: Sequence[DataConfig]
    downloads: Path
    scratch: Path

    def __call__(self, index: int) -> Part:
        config, folder = self.parts[index], self.scratch / "chunks"
        raw = datasets.read(config, self.downloads)
        part = ingest(raw, folder, config.event_types, config.incomplete, index)
        if part.kept:
            memory = config.prepare_memory
            rows = database.parquet(folder, pattern=f"{index}.*")
            with database.opened(self.scratch, threads=1, megabytes=memory) as connection:
                for name in IDS:
                    file = self.scratch / "ids" / f"{name}-{index}.parquet"
                    sorting.rank(connection, sorting.ids_of_rows(rows, name), file)
        return part


@dataclass(frozen=True)
class _Deal:
    """The rows of a chunk file by bucket. types: event types of all parts, by number."""

    scratch: Path
    parts: list[Part]
    types: tuple[str, ...]
    columns: list[str]
    first: int
    bounds: np.ndarray
    megabytes: int

    def __call__(self, part: int, chunk: int) -> Iterator[tuple[int, Rows]]:
        file = self.scratch / "chunks" / f"{part}.{chunk:06}.parquet"
        found = self.parts[part].columns
        query = sorting.ranked(database.parquet(file), found, self.scratch, self.first)
        with database.opened(self.scratch, threads=1, megabytes=self.megabytes) as connection:
            rows = connection.execute(query).fetchnumpy()
        if "event" in rows and self.parts[part].names:
            numbers = [self.types.index(name) for name in self.parts[part].names]
            rows["event"] = np.asarray(numbers, np.uint8)[rows["event"]]
        for name in self.columns:  # columns that only other files have
            if name not in rows:
                rows[name] = np.zeros(len(rows["row"]), NUMPY[name])
        bucket = np.searchsorted(self.bounds[1:-1], rows["user"], side="right")
        order = np.argsort(bucket, kind="stable")
        ends = np.cumsum(np.bincount(bucket, minlength=len(self.bounds) - 1))
        for target in np.unique(bucket).tolist():
            members = order[(ends[target - 1] if target else 0) : ends[target]]
            yield target, {name: values[members] for name, values in rows.items()}


@dataclass(frozen=True)
class _Arrange:
    """Sorts a bucket into its file; returns how many rows were duplicates and repeats."""

    targets: list[Path]
    bounds: np.ndarray
    columns: list[str]
    duplicates: str
    repeats: str
    megabytes: int

    def __call__(self, bucket: int, groups: Iterable[Rows]) -> tuple[int, int]:
        parts = list(groups)
        rows = {name: np.concatenate([part[name] for part in parts]) for name in self.columns}
        file = self.targets[bucket]
        with database.opened(file.parent, threads=1, megabytes=self.megabytes) as connection:
            connection.register("bucket", rows)
            return sorting.arrange(
                connection,
                "FROM bucket",
                self.columns,
                file,
                duplicates=self.duplicates,
                repeats=self.repeats,
            )


NUMPY = {"fraction": np.int32, "event": np.uint8, "returning": np.bool_}
