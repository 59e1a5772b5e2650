"""The flags of the commands that serve user states (`jaxrec states`, `jaxrec recommend`)."""

import argparse
from typing import Protocol

from jaxrec.runtime.program import Parser

USAGE = """Persistent user states: build them once, add events as they arrive, recommend.

  build-states  compress the prepared histories of users that the store does not have
  rebuild       create a new model's store for the users of an old one, from prepared data
  append        add events from parquet or CSV files
  recommend     the best next items of users, as JSON lines, CSV or parquet
  stat          count users and bytes of a store
  verify        recompute a sample of users from their histories and compare
  delete        forget users
  compact       free the disk space of deleted users and replaced rows
  snapshot      save model and states as an Orbax checkpoint beside the run
  restore       write the states of a snapshot into a new store
  export        write the model's functions as artifacts for servers without this package

A store belongs to one model. After training another one, rebuild its states into a new store.
COMMAND --help lists the flags of a command."""
# commands of `jaxrec states` -> their names in `python -m jaxrec.serving`
STATES = {
    "build": "build-states",
    **{
        name: name
        for name in (
            "rebuild", "append", "stat", "verify", "delete", "compact", "snapshot", "restore",
            "export",
        )
    },
}  # fmt: skip


def parsers(prefix: str, names: dict[str, str] | None = None) -> dict[str, Parser]:
    """A parser for every command.

    prefix: of the program's name in --help. names: name on the command line -> command, default
    those of USAGE.
    """
    shown = {command: name for name, command in (names or {}).items()}
    made: dict[str, Parser] = {}

    def add(name: str, text: str, *, model: bool = True, store: bool = True) -> Parser:
        sub = Parser(f"{prefix} {shown.get(name, name)}".strip(), text)
        sub.set_defaults(command=name)
        if model:
            sub.add_argument("--workdir", required=True, help="folder of the training run")
            sub.add_argument("--which", default="best", help="checkpoint: best, latest or a step")
        if store:
            sub.add_argument(
                "--store",
                "--states",
                required=True,
                help="path or URL (gs://, s3://) of the store",
            )
        made[name] = sub
        return sub

    _add_filling(add)
    _add_requests(add)
    _add_maintenance(add)
    return made if names is None else {name: made[command] for name, command in names.items()}


class AddCommand(Protocol):
    """Adds a command; with the flags of a model and of a store, unless switched off."""

    def __call__(self, name: str, text: str, *, model: bool = True, store: bool = True) -> Parser:
        """The parser of the new command."""
        ...


def _add_filling(add: AddCommand) -> None:
    """Commands that write states: build-states, rebuild, append."""
    sub = add("build-states", "Compresses the history of every user that the store lacks.")
    _add_new_store(sub, "serving.* of the run's config")
    _add_shards(sub)
    _add_cache_dir(sub)
    sub = add(
        "rebuild",
        "Compresses the users of another model's store from their prepared histories, into a new "
        "store. Run the same command again after a kill: it continues where it stopped.",
    )
    sub.add_argument("--from", dest="old", required=True, help="path or URL of the old store")
    _add_new_store(sub, "that of the old one")
    _add_shards(sub)
    _add_cache_dir(sub)
    sub = add(
        "append",
        "Adds events. Run the same command again after a kill: the same events are not added "
        "twice (the store remembers the three newest --events).",
    )
    source = sub.add_mutually_exclusive_group(required=True)
    source.add_argument("--events", help="parquet or CSV file or glob")
    source.add_argument(
        "--later",
        nargs="+",
        help="later files, as in data.append: they are appended to the prepared data of the run, "
        "and their events are added to the states that do not have them",
    )
    _add_shards(sub)
    _add_cache_dir(sub)


def _add_requests(add: AddCommand) -> None:
    """Commands that read a store: recommend, stat, verify."""
    sub = add("recommend", "The best next items of users.")
    who = sub.add_mutually_exclusive_group()
    _add_users(who)
    who.add_argument("--all-users", action="store_true", help="every user that the store has")
    sub.add_argument("--k", type=int, default=10, help="items per user")
    sub.add_argument("--now", type=float, help="time of the requests, seconds since 1970")
    sub.add_argument("--exclude-seen", action="store_true", help="needs a store with --keep-seen")
    sub.add_argument(
        "--candidates", default="", help="items to choose from: parquet, CSV, or one id per line"
    )
    sub.add_argument("--exclude", default="", help="items to leave out: the same kinds of file")
    sub.add_argument(
        "--titles",
        default="",
        metavar="FILE:COLUMN",
        help="joins a column of a parquet or CSV file of items, which also has the column of item "
        "ids of the training data",
    )
    sub.add_argument(
        "--output",
        default="-",
        help=".jsonl or .parquet file, a row per user, or .csv file, a row per item; - is standard "
        "output, JSON lines",
    )
    add("stat", "Users and bytes of a store, per shard, as JSON.", model=False)
    sub = add("verify", "Recomputes a sample of users; status 1 when scores differ.")
    sub.add_argument("--sample", type=int, default=200, help="users")
    sub.add_argument("--seed", type=int, default=0, help="of the sample")
    _add_cache_dir(sub)


def _add_maintenance(add: AddCommand) -> None:
    """delete, compact, snapshot, restore and export."""
    sub = add("delete", "Forgets users; compact removes their bytes.")
    _add_users(sub)
    sub = add("compact", "Rewrites the store without deleted and replaced rows.", model=False)
    _add_shards(sub)
    sub = add("snapshot", "Saves model and states as one step.")
    sub.add_argument("--output", default="", help="folder; default: WORKDIR/snapshots")
    sub = add("restore", "Writes a snapshot's states into a new store.", model=False)
    sub.add_argument("--snapshot", required=True, help="folder of snapshots, or of one step")
    sub.add_argument("--step", type=int, help="which one (default: the newest)")
    sub.add_argument("--num-shards", type=int, default=8, help="of the new store")
    sub = add("export", "Writes compress, extend, score and recommend as jax.export.", store=False)
    sub.add_argument("--output", required=True, help="folder of the artifacts")
    sub.add_argument("--events", type=int, default=128, help="new events of one call")
    sub.add_argument("--k", type=int, default=100, help="length of the lists")


def _add_shards(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--shards", default="", help="only these, such as 0-3,7 (default: all)")


def _add_cache_dir(sub: argparse.ArgumentParser) -> None:
    sub.add_argument(
        "--cache-dir", default="", help="folder of prepared data, if not that of the run"
    )


def _add_users(sub: argparse._ActionsContainer) -> None:
    sub.add_argument(
        "--users", default="-", help="parquet, CSV, or a file of one id per line; - is stdin"
    )


def _add_new_store(sub: argparse.ArgumentParser, default: str) -> None:
    """Settings of a store that is created; default: where they come from otherwise."""
    names = "float32, bfloat16, int8"
    sub.add_argument("--encoding", help=f"of a new store: {names} (default: {default})")
    sub.add_argument(
        "--keep-seen", type=int, help=f"of a new store: items kept per user (default: {default})"
    )
    sub.add_argument("--num-shards", type=int, help=f"of a new store (default: {default})")
