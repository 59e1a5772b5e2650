"""The one thread that changes the store: appends, deletions, and the moment of a swap.

Appends that wait are made durable together, as a commit costs far more than the events of a user.
Reads go on meanwhile.
"""

import collections
import dataclasses
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

from jaxrec.errors import DataError, StoreError
from jaxrec.server import appending, errors
from jaxrec.server.errors import ServiceError
from jaxrec.server.generation import Generation
from jaxrec.server.journal import Columns, Counts, Entry, Group, Journal
from jaxrec.server.limits import Limits
from jaxrec.server.metrics import Metrics
from jaxrec.types import UserId


@dataclasses.dataclass(frozen=True)
class Appended:
    """Counts of an append; None: it was finished after a crash. already_applied: key was known."""

    counts: Counts | None
    already_applied: bool = False


@dataclasses.dataclass(eq=False)
class _Append:
    """An append that waits."""

    entry: Entry
    users: frozenset[UserId]
    future: "Future[Appended]"


@dataclasses.dataclass(eq=False)
class _Call:
    """Anything else that waits for its turn."""

    function: Callable[[], Any]
    future: "Future[Any]"


class Writer:
    """The queue of changes and the thread that makes them; holds the journal of the store."""

    def __init__(
        self, generation: Generation, journal: Journal, limits: Limits, metrics: Metrics
    ) -> None:
        self.generation, self.journal = generation, journal
        self.limits, self.metrics = limits, metrics
        self._queue: collections.deque[_Append | _Call] = collections.deque()
        self._changed = threading.Condition()
        self._stopped = False
        self._thread = threading.Thread(target=self._run, name="writer", daemon=True)
        metrics.queue.labels("append").set_function(lambda: len(self._queue))

    def start(self) -> None:
        """Finishes what a kill has left, then starts. Raises StoreError."""
        self._finish_unfinished()
        self._thread.start()

    def append(self, key: str, columns: Columns) -> "Future[Appended]":
        """Queues events of a client; durable when the future is done. Raises ServiceError."""
        entry = Entry(key, columns.digest, columns)
        waiting = _Append(entry, frozenset(columns.users), Future())
        self._put(waiting, bounded=True)
        return waiting.future

    def delete(self, users: list[UserId]) -> "Future[list[bool]]":
        """Queues users to be forgotten; the result says which existed. Raises ServiceError."""
        waiting = _Call(lambda: self._delete(users), Future())
        self._put(waiting, bounded=True)
        return waiting.future

    def call(self, function: Callable[[], Any]) -> "Future[Any]":
        """Runs a function between two changes, with nothing unfinished. Raises ServiceError."""

        def run() -> Any:
            self._finish_unfinished()
            return function()

        waiting = _Call(run, Future())
        self._put(waiting, bounded=False)
        return waiting.future

    def stop(self) -> None:
        """Makes the changes that were accepted, then ends."""
        with self._changed:
            self._stopped = True
            self._changed.notify()
        if self._thread.is_alive():
            self._thread.join()
        self.journal.close()

    # -- the thread --------------------------------------------------------------------------

    def _put(self, waiting: _Append | _Call, *, bounded: bool) -> None:
        with self._changed:
            if self._stopped:
                raise errors.stopping()
            if bounded and len(self._queue) >= self.limits.queue:
                raise errors.busy("appends", len(self._queue))
            self._queue.append(waiting)
            self._changed.notify()

    def _run(self) -> None:
        while True:
            with self._changed:
                while not self._queue and not self._stopped:
                    self._changed.wait()
                if not self._queue:
                    return
                work = self._take()
            if isinstance(work, _Call):
                self._do(work)
            else:
                self._append(work)

    def _take(self) -> "_Call | list[_Append]":
        """The next call, or the next appends of distinct users and keys."""
        first = self._queue.popleft()
        if isinstance(first, _Call):
            return first
        group, users, keys = [first], set(first.users), {first.entry.key} - {""}
        events = len(first.entry.columns.users)
        while self._queue and isinstance(after := self._queue[0], _Append):
            events += len(after.entry.columns.users)
            if users & after.users or after.entry.key in keys or events > self.limits.max_events:
                break
            self._queue.popleft()
            group.append(after)
            users |= after.users
            keys |= {after.entry.key} - {""}
        return group

    def _do(self, call: _Call) -> None:
        if not call.future.set_running_or_notify_cancel():
            return
        try:
            result = call.function()
        except Exception as error:
            call.future.set_exception(error)
        else:
            call.future.set_result(result)

    def _append(self, group: list[_Append]) -> None:
        group = [a for a in group if a.future.set_running_or_notify_cancel()]
        ready = [append for append in group if self._is_new(append)]
        if ready:
            self._write(ready)

    def _is_new(self, append: _Append) -> bool:
        """Answers an append whose key is known or whose events cannot be used."""
        try:
            entry = append.entry
            known = self.journal.find(entry.key, entry.digest) if entry.key else None
            if known is not None:
                append.future.set_result(Appended(known[0], already_applied=True))
                return False
            appending.encode(self.generation.rec, entry.columns)
        except (ServiceError, DataError) as error:
            append.future.set_exception(error)
            return False
        return True

    def _write(self, group: list[_Append]) -> None:
        """Appends, and answers; one by one when nothing was written, as one may be at fault."""
        begun = None
        try:
            self._finish_unfinished()
            begun = self.journal.begin([append.entry for append in group], self.limits.max_batch)
            counts = appending.write(self.generation.rec, self.generation.store, begun)
            self.journal.done(begun, counts)
        except Exception as error:
            untouched = begun is not None and self._untouched(begun, error)
            if begun is not None and untouched:
                self.journal.abort(begun)
            if untouched and len(group) > 1:
                for append in group:
                    self._write([append])
                return
            for append in group:
                append.future.set_exception(error)
            return
        self.metrics.commits.observe(len(group))
        for append, count in zip(group, counts, strict=True):
            self._count(count)
            append.future.set_result(Appended(count))

    def _untouched(self, group: Group, error: Exception) -> bool:
        """Whether an error says that no user of the group was written."""
        if not isinstance(error, StoreError):
            return False
        rec = self.generation.rec
        appends = [appending.encode(rec, entry.columns) for entry in group.entries]
        users = {user for append in appends for user in append.users}
        return len(users) <= group.batch and users <= set(error.users)

    def _count(self, counts: Counts) -> None:
        added, _, unknown, late, repeated = counts
        self.metrics.events.inc(added)
        self.metrics.left_out.labels("unknown_item").inc(unknown)
        self.metrics.left_out.labels("late").inc(late)
        self.metrics.repeated.inc(repeated)

    def _finish_unfinished(self) -> None:
        """Writes the rest of a group of which a part may have been written."""
        group = self.journal.unfinished
        if group is None:
            return
        appending.write(self.generation.rec, self.generation.store, group)
        self.journal.done(group, [None] * len(group.entries))

    def _delete(self, users: list[UserId]) -> list[bool]:
        self._finish_unfinished()
        self.journal.delete(users)
        existed: list[bool] = self.generation.store.delete(users).tolist()
        self.metrics.deleted.inc(sum(existed))
        return existed
