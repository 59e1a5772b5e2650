"""Requests that arrive within a few milliseconds are answered by one call to the model.

One thread takes waiting requests, at most `max_batch` users, answers them together and splits the
answer. While it works, the next ones gather: batches grow with the load by themselves.
"""

import collections
import dataclasses
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future

import numpy as np

from jaxrec.server import errors
from jaxrec.server.generation import Answers
from jaxrec.server.limits import Limits
from jaxrec.server.metrics import Metrics
from jaxrec.serving.requests import Answer, Request
from jaxrec.types import UserId


@dataclasses.dataclass(eq=False)
class Waiting:
    """A request, the generation that checked it, when it came and where its answer goes."""

    generation: Answers
    users: list[UserId]
    request: Request
    since: float = dataclasses.field(default_factory=time.monotonic)
    future: "Future[Answer]" = dataclasses.field(default_factory=Future)


class Batcher:
    """The queue of requests and the thread that answers them."""

    def __init__(self, limits: Limits, metrics: Metrics) -> None:
        self.limits, self.metrics = limits, metrics
        self._queue: collections.deque[Waiting] = collections.deque()
        self._changed = threading.Condition()
        self._stopped = False
        self._thread = threading.Thread(target=self._run, name="batcher", daemon=True)
        metrics.queue.labels("recommend").set_function(lambda: len(self._queue))

    def start(self) -> None:
        """Starts to answer."""
        self._thread.start()

    def submit(self, waiting: Waiting) -> "Future[Answer]":
        """Queues a request. Raises ServiceError: 429 when the queue is full, 503 at the end."""
        with self._changed:
            if self._stopped:
                raise errors.stopping()
            if len(self._queue) >= self.limits.queue:
                raise errors.busy("requests", len(self._queue))
            waiting.generation.enter()
            self._queue.append(waiting)
            self._changed.notify()
        return waiting.future

    def stop(self) -> None:
        """Answers what was accepted, then ends."""
        with self._changed:
            self._stopped = True
            self._changed.notify()
        if self._thread.is_alive():
            self._thread.join()

    def _run(self) -> None:
        while batch := self._next():
            live = [w for w in batch if w.future.set_running_or_notify_cancel()]
            groups: dict[object, list[Waiting]] = {}
            for waiting in live:
                key = waiting.generation.number, waiting.generation.together(waiting.request)
                groups.setdefault(key, []).append(waiting)
            for group in groups.values():
                self._answer(group)
            for waiting in batch:
                waiting.generation.leave()

    def _next(self) -> list[Waiting]:
        """The next requests, at least one; empty at the end."""
        most = self.limits.max_batch
        with self._changed:
            while not self._queue and not self._stopped:
                self._changed.wait()
            if not self._queue:
                return []
            until = self._queue[0].since + self.limits.max_wait_ms / 1000
            while not self._stopped and sum(len(w.users) for w in self._queue) < most:
                remaining = until - time.monotonic()
                if remaining <= 0 or not self._changed.wait(remaining):
                    break
            batch, users = [], 0
            while self._queue and users + len(self._queue[0].users) <= most:
                batch.append(self._queue.popleft())
                users += len(batch[-1].users)
            return batch

    def _answer(self, group: Sequence[Waiting]) -> None:
        """Answers requests of one kind; one that fails is answered alone."""
        users = [user for waiting in group for user in waiting.users]
        try:
            request = merged([waiting.request for waiting in group])
            answer = group[0].generation.answer(users, request)
        except Exception as error:
            if len(group) > 1:
                for waiting in group:
                    self._answer([waiting])
            else:
                group[0].future.set_exception(error)
            return
        self.metrics.batch_users.observe(len(users))
        self.metrics.batch_requests.observe(len(group))
        start = 0
        for waiting in group:
            rows, k = slice(start, start + len(waiting.users)), waiting.request.k
            start = rows.stop
            waiting.future.set_result(
                Answer(answer.items[rows, :k], answer.scores[rows, :k], answer.known[rows])
            )


def merged(requests: Sequence[Request]) -> Request:
    """One request for the users of all, with the longest of their lists.

    All have candidates or none has, and the same for `now`, unless the model ignores it.
    """
    if len(requests) == 1:
        return requests[0]
    candidates = now = None
    if requests[0].candidates is not None:
        candidates = [row for request in requests for row in request.candidates or ()]
    times = [request.now for request in requests]
    if all(time is not None for time in times):
        now = np.concatenate([time for time in times if time is not None])
    return Request(
        max(request.k for request in requests),
        now=now,
        exclude=[row for request in requests for row in request.exclude],
        candidates=candidates,
        exclude_seen=requests[0].exclude_seen,
    )
