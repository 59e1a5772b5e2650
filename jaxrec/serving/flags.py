"""The flags of `python -m jaxrec.serving`."""

import argparse
from typing import Any

USAGE = """Persistent user states: make them once, add events as they arrive, recommend.

  build-states  compress the histories of the prepared data, users the store does not have
  rebuild       a new model's store: the users of an old one, from the prepared data
  append        add events from parquet or CSV files
  recommend     best next items of users, as JSON lines or parquet
  stat          users and bytes of a store
  verify        recompute a sample of users from their histories and compare
  delete        forget users
  compact       give the bytes of deleted users and replaced rows back
  snapshot      save model and states as an Orbax checkpoint beside the run
  restore       bring the states of a snapshot into a new store
  export        the model's functions as artifacts for servers without this package

A store belongs to one model. After training another one, rebuild its states into a new store."""


class Formatter(argparse.ArgumentDefaultsHelpFormatter):
    """Shows defaults that say something."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        if action.default in (None, ""):
            return action.help
        return super()._get_help_string(action)


def parser() -> argparse.ArgumentParser:
    """All subcommands with their flags."""
    top = argparse.ArgumentParser(
        prog="python -m jaxrec.serving",
        description=USAGE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def add(name: str, text: str, model: bool = True, store: bool = True) -> Any:
        sub = commands.add_parser(
            name,
            help=text,
            description=text,
            formatter_class=Formatter,
        )
        if model:
            sub.add_argument("--workdir", required=True, help="folder of the training run")
            sub.add_argument("--which", default="best", help="checkpoint: best, latest or a step")
        if store:
            sub.add_argument(
                "--store", required=True, help="path or URL (gs://, s3://) of the store"
            )
        return sub

    def shards(sub: Any) -> None:
        sub.add_argument("--shards", default="", help="only these, such as 0-3,7 (default: all)")

    def data(sub: Any) -> None:
        sub.add_argument("--cache-dir", default="", help="prepared data, if not that of the run")

    def users(sub: Any) -> None:
        sub.add_argument(
            "--users", default="-", help="parquet, CSV, or a file of one id per line; - is stdin"
        )

    def new(sub: Any, usual: str) -> None:
        kinds = "float32, bfloat16, int8"
        sub.add_argument("--form", help=f"of a new store: {kinds} (default: {usual})")
        sub.add_argument(
            "--keep-seen", type=int, help=f"of a new store: items kept per user (default: {usual})"
        )
        sub.add_argument("--num-shards", type=int, help=f"of a new store (default: {usual})")

    sub = add("build-states", "Compresses the history of every user that the store lacks.")
    new(sub, "serving.* of the run's config")
    shards(sub)
    data(sub)
    sub = add(
        "rebuild",
        "Compresses the users of another model's store from their prepared histories, into a new "
        "store. The same command goes on where a killed one stopped.",
    )
    sub.add_argument("--from", dest="old", required=True, help="path or URL of the old store")
    new(sub, "that of the old one")
    shards(sub)
    data(sub)
    sub = add(
        "append",
        "Adds events. The same command goes on where a killed one stopped: the same events are "
        "not added twice (the store remembers the three newest --events).",
    )
    source = sub.add_mutually_exclusive_group(required=True)
    source.add_argument("--events", help="parquet or CSV file or glob")
    source.add_argument(
        "--later",
        nargs="+",
        help="files as in data.append: prepared behind the data of the run, and what they add is "
        "given to the states that have its events and not theirs",
    )
    shards(sub)
    data(sub)
    sub = add("recommend", "The best next items of users.")
    users(sub)
    sub.add_argument("--k", type=int, default=10, help="items per user")
    sub.add_argument("--now", type=float, help="time of the requests, seconds since 1970")
    sub.add_argument("--exclude-seen", action="store_true", help="needs a store with --keep-seen")
    sub.add_argument(
        "--candidates", default="", help="items to choose from: parquet, CSV, or one id per line"
    )
    sub.add_argument("--exclude", default="", help="items to leave out: the same kinds of file")
    sub.add_argument("--output", default="-", help=".jsonl or .parquet file; - is standard output")
    sub = add("stat", "Users and bytes of a store, per shard, as JSON.", model=False)
    sub = add("verify", "Recomputes a sample of users; status 1 when scores differ.")
    sub.add_argument("--sample", type=int, default=200, help="users")
    sub.add_argument("--seed", type=int, default=0, help="of the sample")
    data(sub)
    sub = add("delete", "Forgets users; compact removes their bytes.")
    users(sub)
    sub = add("compact", "Rewrites the store without deleted and replaced rows.", model=False)
    shards(sub)
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
    return top
