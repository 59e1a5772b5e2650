"""The jobs of `jaxrec states` and `jaxrec recommend`: one function per command.

Modules are imported where a job needs them: `--help` and mistakes answer at once.
"""

import argparse
import dataclasses
import json
import pathlib
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, TypeVar

from jaxrec.errors import DataError
from jaxrec.runtime.program import Failure
from jaxrec.serving.tracking import Progress

if TYPE_CHECKING:
    from jaxrec.data.prepared import Prepared
    from jaxrec.serving.service import Recommender
    from jaxrec.state_store.store import UserStateStore

T = TypeVar("T")


def _print_json(value: Mapping[str, object]) -> None:
    print(json.dumps(value), flush=True)


def _load(args: argparse.Namespace) -> "Recommender":
    """The model of --workdir. Raises WorkdirError, CheckpointError."""
    from jaxrec.serving.service import Recommender

    return Recommender.load(args.workdir, which=args.which)


def _shards(text: str) -> list[int] | None:
    """`0-3,7` as numbers; None for all."""
    if not text:
        return None
    chosen: list[int] = []
    for numbers in text.split(","):
        low, _, high = numbers.strip().partition("-")
        try:
            chosen += range(int(low), int(high or low) + 1)
        except ValueError as error:
            raise DataError(f"--shards={text}: numbers and ranges such as 0-3,7") from error
    return chosen


def _prepared(rec: "Recommender", args: argparse.Namespace) -> "Prepared":
    """The data of the model's run."""
    from jaxrec import data

    config = rec.config.data
    return data.prepare(config, args.cache_dir or pathlib.Path(args.workdir) / "data")


def _progress(label: str) -> Progress:
    from jaxrec.runtime.progress import track

    def tracked(values: Iterable[T], total: int, /) -> Iterable[T]:
        return track(values, total, label)

    return tracked


def build_states(args: argparse.Namespace) -> None:
    """`build-states`."""
    from jaxrec.serving import build

    rec = _load(args)
    prepared = _prepared(rec, args)
    build.check_data(rec, prepared)  # before a store is created
    with _new_store(rec, args) as store:
        result = build.build_states(rec, store, prepared, _progress("batches of users"))
    _print_json(result._asdict())


def rebuild(args: argparse.Namespace) -> None:
    """`rebuild`."""
    from jaxrec.serving import build
    from jaxrec.serving import rebuild as rebuilding
    from jaxrec.state_store.store import UserStateStore

    rec = _load(args)
    prepared = _prepared(rec, args)
    build.check_data(rec, prepared)  # before a store is created
    old = UserStateStore.open(args.old, None, mode="r")
    for name, value in rebuilding.settings_of(old).items():
        if getattr(args, name) is None:
            setattr(args, name, value)
    if rebuilding.identity(args.store) == old.metadata.identity:
        raise DataError(f"--store={args.store}: the same store as --from; choose another place")
    with _new_store(rec, args) as store:
        result = rebuilding.rebuild(rec, old, store, prepared, _progress("batches of users"))
    _print_json(result._asdict())


def _new_store(rec: "Recommender", args: argparse.Namespace) -> "UserStateStore":
    """The store of the flags, created when it is not there."""
    from jaxrec.serving import rebuild as rebuilding

    return rebuilding.create_or_open(
        rec,
        args.store,
        encoding=args.encoding,
        keep_seen=args.keep_seen,
        num_shards=args.num_shards,
        shards=_shards(args.shards),
    )


def append(args: argparse.Namespace) -> None:
    """`append` of --events, or of what --later adds to the data of the run."""
    from jaxrec.data.ingest import dropped_rows
    from jaxrec.runtime.progress import say
    from jaxrec.serving import event_files

    rec = _load(args)
    if args.later:
        return _append_later(rec, args)
    read = event_files.read_events(
        args.events,
        rec.config.data,
        text_users=rec.catalog.text_users,
        text_items=rec.catalog.text_items,
    )
    users, items, times = read[:3]
    if read.incomplete:
        say(f"--events: {dropped_rows(read.incomplete, read.rows)}")
    with rec.open_store(args.store, shards=_shards(args.shards)) as store:
        owned = store.owns(users)
        result = rec.append(
            store,
            users[owned],
            items[owned],
            times[owned],
            idempotent=True,
            progress=_progress("batches of users"),
        )
    if result.repeated:
        say(
            f"--events: {result.repeated:,} events were in the states already (same user, item and "
            "time) and were added again"
        )
    result = result._replace(incomplete=read.incomplete)
    _print_json(result._asdict() | {"of_other_shards": int((~owned).sum())})


def _append_later(rec: "Recommender", args: argparse.Namespace) -> None:
    from jaxrec import data
    from jaxrec.serving import incremental

    base = _prepared(rec, args)
    config = dataclasses.replace(rec.config.data, append=(*rec.config.data.append, *args.later))
    folder = args.cache_dir or pathlib.Path(args.workdir) / "data"
    prepared = data.prepare(config, folder)
    with rec.open_store(args.store, shards=_shards(args.shards)) as store:
        result = incremental.append_new_events(
            rec, store, base, prepared, _progress("batches of users")
        )
    _print_json(result._asdict())


def recommend(args: argparse.Namespace) -> None:
    """`recommend`: lists are written while they are computed, a batch of users at a time."""
    from jaxrec.serving import recommending

    recommending.check(args)
    recommending.recommend(_load(args), args, _progress("batches of users"))


def stat(args: argparse.Namespace) -> None:
    """`stat`."""
    from jaxrec.state_store.store import UserStateStore

    store = UserStateStore.open(args.store, None, mode="r")
    shards = store.stat()
    disk = [shard.disk_bytes for shard in shards]
    metadata = store.metadata
    _print_json(
        {
            "users": sum(shard.users for shard in shards),
            "row_bytes": metadata.spec.row_bytes,
            "live_bytes": sum(shard.live_bytes for shard in shards),
            "disk_bytes": None if None in disk else sum(size or 0 for size in disk),
            "encoding": metadata.binding.encoding,
            "model": metadata.binding.params,
            "shards": [shard._asdict() for shard in shards],
        }
    )


def verify(args: argparse.Namespace) -> None:
    """`verify`. Raises Failure when scores differ, or nobody could be checked."""
    from jaxrec.serving import verification

    rec = _load(args)
    prepared = _prepared(rec, args)
    store = rec.open_store(args.store, mode="r")
    result = verification.verify(
        rec,
        store,
        prepared,
        sample=args.sample,
        seed=args.seed,
        progress=_progress("batches of users"),
    )
    _print_json({**result._asdict(), "passed": result.passed})
    if result.checked and not result.passed:
        raise Failure(
            f"the scores of user {result.user!r} differ by {result.difference:.3g} of their "
            f"range, allowed is {result.bound:.3g}: the rows are not this model's states of these "
            "histories; build a new store"
        )
    if not result.checked:
        raise Failure(
            f"no user could be checked: {result.missing} have no row, {result.changed} have other "
            "events than their prepared history; raise --sample"
        )


def delete(args: argparse.Namespace) -> None:
    """`delete`."""
    from jaxrec.serving import event_files

    rec = _load(args)
    users = event_files.read_users(args.users, rec.config.data, rec.catalog.text_users)
    with rec.open_store(args.store) as store:
        existed = store.delete(dict.fromkeys(users))
    _print_json({"deleted": int(existed.sum()), "unknown": int((~existed).sum())})


def compact(args: argparse.Namespace) -> None:
    """`compact`."""
    from jaxrec.state_store.store import UserStateStore

    shards = _shards(args.shards)
    with UserStateStore.open(args.store, None, mode="w", shards=shards) as store:
        owned = sorted(store.owned)
        for shard in _progress("shards")(owned, len(owned)):
            store.compact([shard])
    stat(args)


def snapshot(args: argparse.Namespace) -> None:
    """`snapshot`."""
    from jaxrec.serving import snapshot as snapshots

    rec = _load(args)
    folder = pathlib.Path(args.output or pathlib.Path(args.workdir) / snapshots.FOLDER)
    store = rec.open_store(args.store, mode="r")
    step = snapshots.save(rec, store, folder, progress=_progress("parts"))
    _print_json(
        {"folder": str(folder), "step": step, "users": snapshots.Snapshot(folder, step).users}
    )


def restore(args: argparse.Namespace) -> None:
    """`restore`."""
    from jaxrec.serving import restore as restoring
    from jaxrec.serving.snapshot import Snapshot

    source = Snapshot(pathlib.Path(args.snapshot), args.step)
    users = restoring.restore(source, args.store, args.num_shards, _progress("parts"))
    _print_json({"step": source.step, "users": users, "model": str(source.folder / "model")})


def export(args: argparse.Namespace) -> None:
    """`export`."""
    import flatbuffers  # noqa: F401  (jax.export's own error names no extra)

    from jaxrec.serving import export as artifacts

    folder = artifacts.save(_load(args), args.output, events=args.events, k=args.k)
    _print_json({"folder": str(folder), "files": sorted(file.name for file in folder.iterdir())})


JOBS: dict[str, Callable[[argparse.Namespace], None]] = {
    "build-states": build_states,
    "rebuild": rebuild,
    "append": append,
    "recommend": recommend,
    "stat": stat,
    "verify": verify,
    "delete": delete,
    "compact": compact,
    "snapshot": snapshot,
    "restore": restore,
    "export": export,
}
