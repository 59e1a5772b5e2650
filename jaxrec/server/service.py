"""The service without HTTP: what is asked of it, by whom it is answered, start, swap and end."""

import os
import pathlib
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, NamedTuple, Protocol

from jaxrec.errors import ConfigError, JaxrecError
from jaxrec.server import appending, errors
from jaxrec.server.batching import Batcher, Waiting
from jaxrec.server.errors import ServiceError
from jaxrec.server.generation import Answers, Generation
from jaxrec.server.journal import Columns
from jaxrec.server.limits import Limits
from jaxrec.server.metrics import Metrics
from jaxrec.server.writing import Appended, Writer
from jaxrec.state_store.places import Url, local_path, open_root
from jaxrec.types import UserId


class Changes(Protocol):
    """What changes users: a `Writer`, or any other (see `benchmarks/full_service.py`)."""

    def start(self) -> None:
        """Called before the first change. Raises JaxrecError."""
        ...

    def append(self, key: str, columns: Columns) -> "Future[Appended]":
        """Adds events."""
        ...

    def delete(self, users: list[UserId]) -> "Future[list[bool]]":
        """Forgets users; says which existed."""
        ...

    def stop(self) -> None:
        """Makes the changes that were accepted, then ends."""
        ...


class Swapped(NamedTuple):
    """The new generation, its programs and the events that its store did not have."""

    generation: Answers
    programs: int
    replayed: int


class Service:
    """Answers requests by one generation at a time.

    generation: the one that answers new requests. state: starting, ready, stopping or failed.
    """

    def __init__(
        self,
        generation: Answers,
        changes: Changes,
        limits: Limits,
        metrics: Metrics,
        *,
        prepare: Callable[[], object],
        journal: str = "",
    ) -> None:
        """prepare: compiles the programs of `generation`. journal: its folder, if it is not beside
        the store.
        """
        self.generation, self.changes = generation, changes
        self.limits, self.metrics = limits, metrics
        self.journal = journal
        self.batcher = Batcher(limits, metrics)
        self.state, self.failure = "starting", ""
        self._prepare = prepare
        self._thread = threading.Thread(target=self._start, name="start", daemon=True)
        self._changing = threading.Lock()  # of `state`, until it is ready
        self._swapping = threading.Lock()
        metrics.programs.set_function(lambda: self.generation.programs)
        metrics.generation.set_function(lambda: self.generation.number)
        metrics.ready.set_function(lambda: self.state == "ready")

    def start(self, failed: Callable[[], None] = lambda: None) -> None:
        """Compiles in the background, then answers. failed: called when that is not possible."""
        self._failed = failed
        self._thread.start()

    def _start(self) -> None:
        try:
            self._prepare()
            with self._changing:
                if self.state != "starting":  # stopped while it compiled
                    return
                self.changes.start()
                self.batcher.start()
                self.state = "ready"
        except Exception as error:
            with self._changing:
                if self.state != "starting":
                    return
                self.state = "failed"
            self.failure = str(error) if isinstance(error, JaxrecError | OSError) else repr(error)
            self._failed()

    def check_ready(self) -> None:
        """Raises ServiceError (503) unless requests are answered."""
        if self.state == "starting":
            raise ServiceError(503, "the model's programs are being compiled: see /ready", 5)
        if self.state != "ready":
            raise errors.stopping()

    def submit(self, waiting: Waiting) -> "Future[Any]":
        """Queues a request. Raises ServiceError."""
        self.check_ready()
        return self.batcher.submit(waiting)

    @property
    def compiling(self) -> bool:
        """Whether the first programs are being compiled; behind `stop` that goes on."""
        return self._thread.is_alive()

    def stop(self) -> None:
        """Finishes what was accepted and closes the store.

        A compilation cannot be interrupted and may take minutes. It writes nothing, so it is left
        behind (see `compiling`).
        """
        with self._changing:
            started = self.state != "starting"
            self.state = "stopping" if self.state != "failed" else "failed"
        if started and self._thread.ident is not None:
            self._thread.join()
        with self._swapping:
            self.batcher.stop()
            self.changes.stop()
            self.generation.retire()

    # -- swap --------------------------------------------------------------------------------

    def swap(self, workdir: str, states: Url, which: str = "best") -> Swapped:
        """Serves another model and its store from now on; takes as long as compiling does.

        Requests go on meanwhile. Events that were appended since the new store was built are added
        to it, and users that were forgotten are forgotten there. Raises ServiceError and
        JaxrecError, and everything stays as it was.
        """
        self.check_ready()
        if not self._swapping.acquire(blocking=False):
            raise ServiceError(409, "another swap is going on: wait for it")
        try:
            return self._swap(workdir, states, which)
        finally:
            self._swapping.release()

    def _swap(self, workdir: str, states: Url, which: str) -> Swapped:
        old, writer = self.generation, self.changes
        if not isinstance(writer, Writer):
            raise ServiceError(409, "this service has no store: it cannot be swapped")
        folder = journal_folder(states, self.journal)
        new = Generation.load(workdir, states, self.limits, which=which, number=old.number + 1)
        try:
            _check_kinds(old, new)
            programs = new.compile()
            batch = self.limits.max_batch
            # most of it while requests go on, the rest between two changes
            replayed = appending.replay(new.rec, new.store, writer.journal.events(), batch)

            def switch() -> int:
                added = appending.replay(new.rec, new.store, writer.journal.events(), batch)
                if folder != writer.journal.folder:
                    before, writer.journal = writer.journal, writer.journal.copy_to(folder)
                    before.close()
                writer.generation = self.generation = new
                return added

            replayed += writer.call(switch).result()
        except BaseException:
            new.retire()
            raise
        old.retire()
        return Swapped(new, programs, replayed)


def _check_kinds(old: Answers, new: Answers) -> None:
    """Raises ServiceError when clients would have to send other kinds of ids."""
    for what, name in (("user", "text_users"), ("item", "text_items")):
        if getattr(old.catalog, name) != getattr(new.catalog, name):
            kinds = {True: "text", False: "integers"}
            raise ServiceError(
                409,
                f"the {what} ids of the new model are {kinds[getattr(new.catalog, name)]}, those "
                f"served are {kinds[getattr(old.catalog, name)]}: start another service for it",
            )


def journal_folder(states: Url, given: str = "") -> pathlib.Path:
    """The journal of a store: `STATES.journal`, beside it. given: another place.

    Raises ConfigError for a store that is not on a local disk, without another place.
    """
    if given:
        return pathlib.Path(given)
    directory = local_path(open_root(states))
    if directory is None:
        raise ConfigError(
            f"--states={states}: not on a local disk; name a local folder for the journal of "
            "appends with --journal"
        )
    return pathlib.Path(os.path.normpath(directory) + ".journal")
