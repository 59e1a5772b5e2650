"""A model with its store, as long as requests use it."""

import os
import threading
from collections.abc import Hashable, Sequence
from typing import Protocol, Self

from jaxrec.data.catalog import Catalog
from jaxrec.errors import ConfigError
from jaxrec.server.limits import Limits
from jaxrec.serving import state_rows
from jaxrec.serving.requests import Answer, Request
from jaxrec.serving.service import Recommender
from jaxrec.serving.warm_up import warm_up
from jaxrec.state_store.places import Url
from jaxrec.state_store.store import UserStateStore
from jaxrec.types import UserId


class Answers(Protocol):
    """What answers requests: a stored model, or any other (see `benchmarks/full_service.py`)."""

    number: int

    @property
    def catalog(self) -> Catalog:
        """Kinds of ids, and the clock."""
        ...

    @property
    def version(self) -> str:
        """Digest of the model."""
        ...

    @property
    def incomplete(self) -> str:
        """What becomes of events without user, item or time: refuse or drop."""
        ...

    @property
    def programs(self) -> int:
        """How many programs have been compiled."""
        ...

    def check(self, request: Request) -> None:
        """Raises ValueError for a request that this one cannot answer."""
        ...

    def together(self, request: Request) -> Hashable:
        """Requests with equal values may share a batch."""
        ...

    def answer(self, users: Sequence[UserId], request: Request) -> Answer:
        """The top lists of a batch."""
        ...

    def enter(self) -> None:
        """A request begins to use it."""
        ...

    def leave(self) -> None:
        """A request has been answered."""
        ...

    def retire(self) -> None:
        """Closes it behind its last request."""
        ...


class Uses:
    """Counts users of something that is closed behind the last one."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._count, self._retired = 0, False

    def enter(self) -> None:
        """One more."""
        with self._lock:
            self._count += 1

    def leave(self) -> None:
        """One less."""
        with self._lock:
            self._count -= 1
            last = self._retired and not self._count
        if last:
            self.close()

    def retire(self) -> None:
        """Nobody enters any more: `close` now, or behind the last one."""
        with self._lock:
            last = not self._retired and not self._count
            self._retired = True
        if last:
            self.close()

    def close(self) -> None:
        """Called once."""


class Generation(Uses):
    """A trained model and its store, open for writing."""

    def __init__(self, rec: Recommender, store: UserStateStore, number: int, states: Url) -> None:
        super().__init__()
        self.rec, self.store, self.number, self.states = rec, store, number, states

    @classmethod
    def load(
        cls,
        folder: str | os.PathLike[str],
        states: Url,
        limits: Limits,
        *,
        which: str = "best",
        number: int = 1,
    ) -> Self:
        """The model of a run and its store; nothing is compiled yet.

        Raises ConfigError for a run without user states, and what `Recommender.load` and
        `open_store` raise.
        """
        keep_seen = state_rows.seen_capacity(UserStateStore.open(states, None).spec)
        try:
            rec = Recommender.load(folder, which=which, shapes=limits.shapes(keep_seen))
        except ValueError as error:
            if "layout.mode" not in str(error):
                raise
            raise ConfigError(f"--workdir={os.fspath(folder)}: {error}") from error
        return cls(rec, rec.open_store(states), number, states)

    def compile(self) -> int:
        """Compiles every program; returns how many."""
        store = self.store
        return warm_up(self.rec.compiled, store.spec, store.metadata.binding.encoding)

    @property
    def catalog(self) -> Catalog:
        """Kinds of ids, and the clock."""
        return self.rec.catalog

    @property
    def version(self) -> str:
        """Digest of the model."""
        return self.rec.version

    @property
    def incomplete(self) -> str:
        """`data.incomplete` of the run."""
        return self.rec.config.data.incomplete

    @property
    def programs(self) -> int:
        """How many programs have been compiled."""
        return self.rec.traces.total()

    def check(self, request: Request) -> None:
        """Raises ValueError when seen items are to be left out and the store has none."""
        state_rows.check_seen(self.store.spec, request.exclude_seen)

    def together(self, request: Request) -> Hashable:
        """Requests with equal values may share a batch."""
        timed = self.rec.config.model.request_time and request.now is not None
        return request.candidates is None, request.exclude_seen, timed

    def answer(self, users: Sequence[UserId], request: Request) -> Answer:
        """The top lists of a batch."""
        return self.rec.answer(self.store, users, request)

    def close(self) -> None:
        """Gives the store back."""
        self.store.close()
