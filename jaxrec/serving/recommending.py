"""The job of `jaxrec recommend`: lists for some or all users of a store, with titles, to a file."""

import argparse
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING

from jaxrec.config import DataConfig
from jaxrec.data.datasets import files
from jaxrec.data.ingest import to_numpy
from jaxrec.errors import DataError
from jaxrec.runtime.progress import say
from jaxrec.serving import event_files, requests
from jaxrec.serving.buckets import BATCH
from jaxrec.serving.event_files import TopList
from jaxrec.types import ItemId, UserId

if TYPE_CHECKING:
    import numpy as np

    from jaxrec.serving.service import Recommender
    from jaxrec.serving.tracking import Progress
    from jaxrec.state_store.store import UserStateStore


def check(args: argparse.Namespace) -> None:
    """Raises DataError for flags that cannot work, before a model is loaded."""
    event_files.check_target(args.output)
    if args.k < 1:
        raise DataError(f"--k={args.k}: a positive number of items is needed")
    if args.titles:
        title_file(args.titles)


def recommend(rec: "Recommender", args: argparse.Namespace, progress: "Progress") -> None:
    """Writes lists while they are computed; says on standard error who and what is unknown.

    args: the flags of `recommend`, after `check`. Raises DataError, StoreError.
    """
    import numpy as np

    config, catalog = rec.config.data, rec.catalog
    titles = read_titles(args.titles, config, catalog.text_items) if args.titles else None
    candidates, exclude = (
        event_files.read_ids(source, flag, config.item_column, catalog.text_items)
        if source
        else None
        for source, flag in ((args.candidates, "--candidates"), (args.exclude, "--exclude"))
    )
    for flag, items in (("--candidates", candidates), ("--exclude", exclude)):
        _say_unknown(flag, catalog.vocabulary.encode(items or []) == 0, "items", "ignored")
    store = rec.open_store(args.store, mode="r")
    if args.all_users:
        count, batches = _everybody(store)
    else:
        users = event_files.read_users(args.users, config, catalog.text_users)
        if not users:
            raise DataError(f"--users={args.users}: no ids; --all-users takes those of the store")
        count = len(users)
        batches = (users[start : start + BATCH] for start in range(0, count, BATCH))
    if args.output != event_files.STDIN:
        batches = progress(batches, -(-count // BATCH))
    known: list[np.ndarray] = []
    untitled = set[ItemId]()

    def top_lists() -> Iterator[TopList]:
        for batch in batches:
            users, request = requests.make_request(
                catalog,
                batch,
                min(args.k, catalog.num_items),  # lists end with their last item
                now=args.now,
                exclude_seen=args.exclude_seen,
                exclude=exclude,
                candidates=candidates,
            )
            answer = rec.answer(store, users, request)
            known.append(answer.known)
            rows = zip(users, answer.items.tolist(), answer.scores.tolist(), strict=True)
            for user, items, scores in rows:
                filled = [i for i, score in enumerate(scores) if score != float("-inf")]
                found = [items[i] for i in filled]
                names = None
                if titles is not None:
                    names = [titles.get(item) for item in found]
                    untitled.update(i for i, n in zip(found, names, strict=True) if n is None)
                yield TopList(user, found, [scores[i] for i in filled], names)

    event_files.write_lists(top_lists(), args.output)
    if known:
        _say_unknown("--users", ~np.concatenate(known), "users", "given the most popular items")
    if untitled:
        say(f"--titles: {len(untitled):,} recommended items have no title in {args.titles}")


def _everybody(store: "UserStateStore") -> tuple[int, Iterable[list[UserId]]]:
    """How many users a store has, and their ids in batches. Raises DataError for an empty one."""
    count = sum(shard.users for shard in store.stat())
    if not count:
        raise DataError("--all-users: the store has no users; jaxrec states build fills it")

    def batches() -> Iterator[list[UserId]]:
        waiting: list[UserId] = []
        for listed in store.users():
            waiting += listed
            while len(waiting) >= BATCH:
                yield waiting[:BATCH]
                waiting = waiting[BATCH:]
        if waiting:
            yield waiting

    return count, batches()


def title_file(text: str) -> tuple[str, str]:
    """File and column of `FILE:COLUMN`. Raises DataError."""
    file, colon, column = text.rpartition(":")
    if not colon or not file or not column:
        raise DataError(f"--titles={text}: FILE:COLUMN is needed, such as items.parquet:title")
    if not file.lower().endswith(event_files.TABLES):
        known = ", ".join(event_files.TABLES)
        raise DataError(f"--titles={text}: {file} is no table, known endings are {known}")
    files.find(file, "--titles")
    return file, column


def read_titles(text: str, config: DataConfig, text_items: bool) -> Mapping[ItemId, str]:
    """Item -> title, from FILE:COLUMN. Raises DataError naming the file and the column."""
    file, column = title_file(text)
    key = config.item_column
    if key == column:
        raise DataError(f"--titles={text}: {column} is the column of item ids")
    kinds = {key: "text" if text_items else "integer"}
    titles: dict[ItemId, str] = {}
    table_format = files.Format(
        kinds=kinds, hint="the column of item ids is data.item_column of the run"
    )
    for frame, _, _ in files.frames(files.find(file, "--titles"), (key, column), table_format):
        ids = to_numpy(frame[key]).tolist()
        for item, title in zip(ids, frame[column].to_list(), strict=True):
            if title is not None:
                titles[item] = str(title)
    return titles


def _say_unknown(flag: str, unknown: "np.ndarray", what: str, outcome: str) -> None:
    """Says on standard error how many ids [N] of a file are unknown, unless all are known."""
    if unknown.any():
        say(f"{flag}: {int(unknown.sum()):,} of {len(unknown):,} {what} are unknown: {outcome}")
