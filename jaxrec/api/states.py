"""The persistent store of a run's user states, with frames in and out."""

import pathlib
import tempfile
from types import TracebackType
from typing import Self

import numpy as np

from jaxrec.api import answers, event_file, frames
from jaxrec.api.frames import Frame
from jaxrec.data.ingest import dropped_rows
from jaxrec.errors import DataError, JaxrecError
from jaxrec.runtime.progress import say, track
from jaxrec.serving import build, event_files, rebuild
from jaxrec.serving.raw_inputs import ItemLists
from jaxrec.serving.service import Recommender
from jaxrec.serving.tracking import Progress
from jaxrec.serving.updates import AppendResult
from jaxrec.session import Session
from jaxrec.state_store.metadata import delete_json, read_json, write_json
from jaxrec.state_store.places import Url, open_root
from jaxrec.state_store.store import UserStateStore

# a file of a store whose states are being built: half of them must not be taken for all
BUILDING_FILE = "building.json"


class States:
    """Stored states of users: append events, recommend, forget. Close it, or use it in `with`.

    It holds the store for writing, so one process has it at a time.
    """

    def __init__(
        self, recommender: Recommender, store: UserStateStore, library: str = "polars"
    ) -> None:
        """recommender: the model. store: of it, open for writing. library: of the frames."""
        self.recommender, self.store, self.library = recommender, store, library

    def append(self, events: Frame | str) -> AppendResult:
        """Adds later events to their users' states; durable when it returns.

        events: a frame with the columns of the training data, or a path or glob of files. Rows may
        be in any order; new users are added. The same call may be repeated after a failure: nothing
        is added twice. Events of unknown items and late ones are left out and counted, and so are
        rows without user, item or time with `data.incomplete=drop`: the result says how many.
        Raises DataError, before anything is written, naming the column.
        """
        if frames.is_path(events):
            return self._append(str(events))
        frame = event_file.table(events, self.recommender.config.data, "append").frame
        with tempfile.TemporaryDirectory() as folder:
            path = pathlib.Path(folder) / "events.parquet"
            event_file.write(frame, path)
            try:
                return self._append(str(path))
            except DataError as error:
                message = str(error).replace(f"--events={path}", "append")
                raise DataError(message.replace(str(path), "append")) from error

    def _append(self, pattern: str) -> AppendResult:
        catalog = self.recommender.catalog
        read = event_files.read_events(
            pattern,
            self.recommender.config.data,
            text_users=catalog.text_users,
            text_items=catalog.text_items,
        )
        if read.incomplete:
            say(f"append: {dropped_rows(read.incomplete, read.rows)}")
        result = self.recommender.append(
            self.store, read.users, read.items, read.times, idempotent=True
        )
        left_out = result.unknown_items + result.late
        if left_out:
            say(
                f"append: {left_out:,} events left out: {result.unknown_items:,} of items that the "
                f"model does not know, {result.late:,} older than what is compressed already"
            )
        return result._replace(incomplete=read.incomplete)

    def recommend(
        self,
        users: object,
        k: int = 10,
        *,
        exclude_seen: bool | None = None,
        exclude: ItemLists | None = None,
        candidates: ItemLists | None = None,
        now: object = None,
    ) -> Frame:
        """The k best next items of each user, from the stored states; as `FittedModel.recommend`.

        exclude_seen: needs a store that remembers items (`keep_seen`).
        """
        rec, data = self.recommender, self.recommender.config.data
        who = answers.asked(users, data, rec.catalog, self.library)
        answers.check_k(k)
        if exclude_seen is None:
            exclude_seen = rec.config.eval.filter_seen
        lists = {
            "exclude": answers.item_lists(exclude, "exclude"),
            "candidates": answers.item_lists(candidates, "candidates"),
        }
        try:
            items, scores = rec.recommend(
                self.store,
                who.users,
                min(k, rec.catalog.num_items),
                now=answers.moment(now, data.time_zone),
                exclude_seen=exclude_seen,
                **lists,
            )
        except JaxrecError:
            raise
        except ValueError as error:
            raise DataError(f"recommend: {error}") from error
        answers.say_unknown_items(lists, rec.catalog)
        known = self.store.read(who.users)[1] if who.users else np.zeros(0, bool)
        return answers.frame(who, known, items, scores, data=data, catalog=rec.catalog)

    def forget(self, users: object) -> int:
        """Deletes states and removes their bytes from the disk; returns how many users had one.

        users: as of `recommend`. Their events remain in the training data and in the files of the
        run: a store that is built anew has them again.
        """
        catalog = self.recommender.catalog
        who = answers.asked(users, self.recommender.config.data, catalog, self.library)
        existed = {
            user
            for user, there in zip(who.users, self.store.delete(who.users), strict=True)
            if there
        }
        if existed:
            self.store.compact()
        return len(existed)

    def __len__(self) -> int:
        """Users with a state."""
        return sum(shard.users for shard in self.store.stat())

    def close(self) -> None:
        """Lets the store go."""
        self.store.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


def open_or_build(
    recommender: Recommender,
    session: Session,
    url: Url,
    *,
    encoding: str | None,
    keep_seen: int | None,
) -> UserStateStore:
    """The store at `url`, open for writing; one that is not there is made of the training data.

    A build that was interrupted goes on. Later the store is opened as it is: users that were
    forgotten stay forgotten. Raises StoreError, DataError, ValueError.
    """
    if keep_seen is None and rebuild.identity(url) is None:
        config = recommender.config
        keep_seen = config.serving.keep_seen
        if config.eval.filter_seen and not keep_seen:
            keep_seen = config.layout.history
    root = open_root(url)
    unfinished = read_json(root, BUILDING_FILE)[0] is not None
    if rebuild.identity(url) is None and not unfinished:
        build.check_data(recommender, session.prepared)
        write_json(root, BUILDING_FILE, {"users": session.prepared.num_users})
        unfinished = True
    store = rebuild.create_or_open(recommender, url, encoding=encoding, keep_seen=keep_seen)
    try:
        if unfinished:
            build.build_states(recommender, store, session.prepared, _progress())
            delete_json(root, BUILDING_FILE)
    except BaseException:
        store.close()
        raise
    return store


def _progress() -> Progress:
    return lambda values, total, /: track(values, total, "states, batches of users")
