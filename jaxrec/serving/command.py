"""The command line `python -m jaxrec.serving`: one function per job of `flags.py`."""

import argparse
import dataclasses
import json
import os
import pathlib
import signal
import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from jaxrec.errors import (
    DataError,
    JaxrecError,
)
from jaxrec.serving.flags import parser

# Errors whose message says what to do; anything else is a bug and keeps its traceback.


# packages that some subcommands need -> the extra that brings them
EXTRAS = {"flatbuffers": "export", "polars": "data", "tensorflow_datasets": "data"}


class Failure(Exception):
    """Ends the program with one line and status 1."""


def run(argv: Sequence[str] | None = None) -> int:
    """Exit status: 0, 1 when `verify` fails, 2 after an error that names what to change."""
    args = parser().parse_args(argv)
    try:
        JOBS[args.command](args)
    except Failure as failure:
        print(f"{args.command}: {failure}", file=sys.stderr)
        return 1
    except BrokenPipeError:  # whoever read the output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (JaxrecError, OSError) as error:
        print(f"{args.command}: error: {error}", file=sys.stderr)
        return 2
    except ModuleNotFoundError as error:
        extra = EXTRAS.get(error.name or "")
        if extra is None:
            raise
        print(
            f"{args.command}: error: {error.name} is not installed: pip install 'jaxrec[{extra}]'",
            file=sys.stderr,
        )
        return 2
    except (ValueError, TypeError) as error:
        if "jaxrec" not in (_origin(error) or ""):
            raise
        print(f"{args.command}: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"{args.command}: interrupted", file=sys.stderr)
        return 128 + signal.SIGINT
    return 0


def _origin(error: BaseException) -> str | None:
    """File that raised."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return None if trace is None else trace.tb_frame.f_code.co_filename


def _say(value: dict[str, Any]) -> None:
    print(json.dumps(value), flush=True)


def _load(args: argparse.Namespace) -> Any:
    from jaxrec.serving.service import Recommender

    return Recommender.load(args.workdir, which=args.which)


def _shards(text: str) -> list[int] | None:
    """`0-3,7` as numbers; None for all."""
    if not text:
        return None
    chosen: list[int] = []
    for part in text.split(","):
        low, _, high = part.strip().partition("-")
        try:
            chosen += range(int(low), int(high or low) + 1)
        except ValueError as error:
            raise DataError(f"--shards={text}: numbers and ranges such as 0-3,7") from error
    return chosen


def _prepared(rec: Any, args: argparse.Namespace) -> Any:
    from jaxrec import data

    config = rec.config.data
    return data.prepare(config, args.cache_dir or pathlib.Path(args.workdir) / "data")


def _track(label: str) -> Any:
    from jaxrec.runtime.progress import track

    def tracked(values: Iterable[Any], total: int) -> Iterator[Any]:
        return track(values, total, label)

    return tracked


def build_states(args: argparse.Namespace) -> None:
    from jaxrec.serving import build

    rec = _load(args)
    prepared = _prepared(rec, args)
    build.check_data(rec, prepared)  # before a store is made
    with _made(rec, args) as store:
        built = build.build_states(rec, store, prepared, _track("batches of users"))
    _say(built._asdict())


def rebuild(args: argparse.Namespace) -> None:
    from jaxrec.serving import build
    from jaxrec.serving import rebuild as rebuilding
    from jaxrec.state_store.store import UserStateStore

    rec = _load(args)
    prepared = _prepared(rec, args)
    build.check_data(rec, prepared)  # before a store is made
    old = UserStateStore.open(args.old, None, mode="r")
    for name, value in rebuilding.described(old).items():
        if getattr(args, name) is None:
            setattr(args, name, value)
    if rebuilding.identity(args.store) == old.metadata.identity:
        raise DataError(f"--store={args.store}: the same store as --from; choose another place")
    with _made(rec, args) as store:
        done = rebuilding.rebuild(rec, old, store, prepared, _track("batches of users"))
    _say(done._asdict())


def _made(rec: Any, args: argparse.Namespace) -> Any:
    """The store of the flags, made when it is not there."""
    from jaxrec.serving import rebuild as rebuilding

    return rebuilding.create_or_open(
        rec,
        args.store,
        form=args.form,
        keep_seen=args.keep_seen,
        num_shards=args.num_shards,
        shards=_shards(args.shards),
    )


def append(args: argparse.Namespace) -> None:
    from jaxrec.serving import event_files

    rec = _load(args)
    if args.later:
        return _append_later(rec, args)
    columns = event_files.read_events(args.events, rec.config.data)
    with rec.open_store(args.store, shards=_shards(args.shards)) as store:
        mine = store.owns(columns[0])
        done = rec.append(
            store, *(c[mine] for c in columns), once=True, track=_track("batches of users")
        )
    _say(done._asdict() | {"of_other_shards": int((~mine).sum())})


def _append_later(rec: Any, args: argparse.Namespace) -> None:
    from jaxrec import data
    from jaxrec.serving import feed

    base = _prepared(rec, args)
    config = dataclasses.replace(rec.config.data, append=(*rec.config.data.append, *args.later))
    folder = args.cache_dir or pathlib.Path(args.workdir) / "data"
    prepared = data.prepare(config, folder)
    with rec.open_store(args.store, shards=_shards(args.shards)) as store:
        done = feed.feed(rec, store, base, prepared, _track("batches of users"))
    _say(done._asdict())


def recommend(args: argparse.Namespace) -> None:
    from jaxrec.serving import event_files
    from jaxrec.serving.service import BATCH

    event_files.check_target(args.output)
    rec = _load(args)
    users = event_files.read_users(args.users, rec.config.data, rec.catalog.text_users)
    text = rec.catalog.no_item == ""
    chosen, unwanted = (
        event_files.read_ids(source, flag, rec.config.data.item_column, text) if source else None
        for source, flag in ((args.candidates, "--candidates"), (args.exclude, "--exclude"))
    )
    store = rec.open_store(args.store, mode="r")
    starts = range(0, len(users), BATCH)
    quiet = args.output == event_files.STDIN
    tracked = starts if quiet else _track("batches of users")(starts, len(starts))

    def lines() -> Iterator[event_files.Line]:
        for start in tracked:
            some = users[start : start + BATCH]
            items, scores = rec.recommend(
                store,
                some,
                k=min(args.k, rec.catalog.num_items),  # lines end with their last item
                now=args.now,
                exclude_seen=args.exclude_seen,
                exclude=unwanted,
                candidates=chosen,
            )
            for user, found, values in zip(some, items.tolist(), scores.tolist(), strict=True):
                real = [place for place, value in enumerate(values) if value != float("-inf")]
                yield event_files.Line(user, [found[i] for i in real], [values[i] for i in real])

    event_files.write_lines(lines(), args.output)


def stat(args: argparse.Namespace) -> None:
    from jaxrec.state_store.store import UserStateStore

    store = UserStateStore.open(args.store, None, mode="r")
    shards = store.stat()
    disk = [shard.disk_bytes for shard in shards]
    metadata = store.metadata
    _say(
        {
            "users": sum(shard.users for shard in shards),
            "row_bytes": metadata.spec.row_bytes,
            "live_bytes": sum(shard.live_bytes for shard in shards),
            "disk_bytes": None if None in disk else sum(size or 0 for size in disk),
            "form": metadata.binding.form,
            "model": metadata.binding.params,
            "shards": [shard._asdict() for shard in shards],
        }
    )


def verify(args: argparse.Namespace) -> None:
    from jaxrec.serving import build

    rec = _load(args)
    prepared = _prepared(rec, args)
    store = rec.open_store(args.store, mode="r")
    found = build.verify(rec, store, prepared, args.sample, args.seed, _track("batches of users"))
    _say({**found._asdict(), "passed": found.passed})
    if found.checked and not found.passed:
        raise Failure(
            f"the scores of user {found.user!r} differ by {found.difference:.3g} of their range, "
            f"allowed is {found.bound:.3g}: the rows are not this model's states of these "
            "histories; build a new store"
        )
    if not found.checked:
        raise Failure(
            f"no user could be checked: {found.missing} have no row, {found.changed} have other "
            "events than their prepared history; raise --sample"
        )


def delete(args: argparse.Namespace) -> None:
    from jaxrec.serving import event_files

    rec = _load(args)
    users = event_files.read_users(args.users, rec.config.data, rec.catalog.text_users)
    with rec.open_store(args.store) as store:
        existed = store.delete(dict.fromkeys(users))
    _say({"deleted": int(existed.sum()), "unknown": int((~existed).sum())})


def compact(args: argparse.Namespace) -> None:
    from jaxrec.state_store.store import UserStateStore

    shards = _shards(args.shards)
    with UserStateStore.open(args.store, None, mode="w", shards=shards) as store:
        owned = sorted(store.owned)
        for shard in _track("shards")(owned, len(owned)):
            store.compact([shard])
    stat(args)


def snapshot(args: argparse.Namespace) -> None:
    from jaxrec.serving import snapshot as snapshots

    rec = _load(args)
    folder = pathlib.Path(args.output or pathlib.Path(args.workdir) / snapshots.FOLDER)
    store = rec.open_store(args.store, mode="r")
    step = snapshots.save(rec, store, folder, track=_track("parts"))
    _say({"folder": str(folder), "step": step, "users": snapshots.Snapshot(folder, step).users})


def restore(args: argparse.Namespace) -> None:
    from jaxrec.serving import snapshot as snapshots

    taken = snapshots.Snapshot(pathlib.Path(args.snapshot), args.step)
    users = snapshots.restore(taken, args.store, args.num_shards, _track("parts"))
    _say({"step": taken.step, "users": users, "model": str(taken.folder / "model")})


def export(args: argparse.Namespace) -> None:
    import flatbuffers  # noqa: F401  (jax.export's own error names no extra)

    from jaxrec.serving import export as artifacts

    folder = artifacts.save(_load(args), args.output, events=args.events, k=args.k)
    _say({"folder": str(folder), "files": sorted(file.name for file in folder.iterdir())})


JOBS = {
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
