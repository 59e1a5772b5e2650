"""A full-history model behind the same HTTP service, for comparison: histories are in memory.

    python -m benchmarks.full_service --workdir=runs/full --port=0

Every request is one forward pass over the user's whole history (layout.mode=full), batched by the
same queue. Events are appended to the histories in memory and lost at the end.
"""

import argparse
import pathlib
import sys
import threading
from collections.abc import Hashable, Sequence
from concurrent.futures import Future

import jax
import jax.numpy as jnp
import numpy as np

from jaxrec import data, ranking
from jaxrec.config import Config
from jaxrec.data.catalog import Catalog
from jaxrec.errors import ConfigError, JaxrecError
from jaxrec.ranking import ItemIndex, TopK
from jaxrec.runtime import checkpoint, workdir
from jaxrec.server import running
from jaxrec.server.generation import Uses
from jaxrec.server.journal import Columns
from jaxrec.server.limits import Limits
from jaxrec.server.metrics import Metrics
from jaxrec.server.service import Service
from jaxrec.server.writing import Appended
from jaxrec.serving import buckets, raw_inputs
from jaxrec.serving.compiled import build_model
from jaxrec.serving.requests import Answer, Request
from jaxrec.serving.state_rows import Events
from jaxrec.types import Array, Params, UserId


class FullHistory(Uses):
    """Answers by whole histories; events are dense ids and model times of each user."""

    number = 1

    def __init__(
        self,
        config: Config,
        params: Params,
        catalog: Catalog,
        histories: dict[UserId, Events],
        limits: Limits,
    ) -> None:
        """Raises ConfigError for a run of another layout."""
        super().__init__()
        if config.layout.mode != "full":
            raise ConfigError(f"layout.mode={config.layout.mode!r}: a run with 'full' is needed")
        self.catalog, self.version = catalog, "full"
        self.incomplete = config.data.incomplete
        self.model = build_model(config, catalog.num_items)
        self.length = self.model.layout.num_items
        self.shapes, self.chunk = limits.shapes(0), config.eval.chunk
        self.params: Params = jax.device_put(params, jax.local_devices()[0])
        self.index = self.model.item_index(self.params)
        self.programs = 0
        self._histories = histories
        self._lock = threading.Lock()
        self._lists = jax.jit(self._top_lists, static_argnames=("k",))

    @classmethod
    def load(cls, folder: pathlib.Path, limits: Limits) -> "FullHistory":
        """The best checkpoint of a run, and the histories it was prepared with."""
        config, catalog = workdir.load_config(folder), Catalog.load(folder)
        model = build_model(config, catalog.num_items)
        like = jax.eval_shape(model.init, jax.random.key(0))
        _, params = checkpoint.load_params(folder / workdir.CHECKPOINTS, like)
        prepared = data.prepare(config.data, config.data.cache_dir or folder / "data")
        histories = {
            user: Events(*prepared.source[number][:2])
            for number, user in enumerate(prepared.users.tolist())
        }
        return cls(config, params, catalog, histories, limits)

    def check(self, request: Request) -> None:
        """Raises ValueError for what is not measured."""
        if request.exclude_seen or request.candidates or any(len(row) for row in request.exclude):
            raise ValueError("users, k and now alone are answered by whole histories")

    def together(self, request: Request) -> Hashable:
        """All requests may share a batch."""
        return request.now is None

    def answer(self, users: Sequence[UserId], request: Request) -> Answer:
        """The top lists of a batch, by one forward pass over its histories."""
        size = buckets.size_of(len(users), self.shapes.users)
        items, times = np.zeros((2, size, self.length), np.int32)
        counts = np.zeros(size, np.int32)
        for row, user in enumerate(users):
            history = self._histories.get(user)
            if history is not None:
                counts[row] = min(len(history.items), self.length)
                items[row, : counts[row]] = history.items[-self.length :]
                times[row, : counts[row]] = history.times[-self.length :]
        now = times.max(1) if request.now is None else buckets.fill(request.now, size)
        k = min(buckets.size_of(request.k, self.shapes.lists), self.index.num_items)
        scores, ids = map(
            np.asarray, self._lists(self.params, self.index, items, times, counts, now, k=k)
        )
        known = counts[: len(users)] > 0
        width = min(k, request.k)
        return Answer(
            self.catalog.raw(ids[: len(users), :width]), scores[: len(users), :width], known
        )

    def compile(self) -> None:
        """One program for every size."""
        for users in self.shapes.users:
            for k in self.shapes.lists:
                nothing = [np.zeros(0, np.int32)] * users
                self.answer([""] * users, Request(k, None, nothing, None))

    def _top_lists(
        self,
        params: Params,
        index: ItemIndex,
        items: Array,
        times: Array,
        counts: Array,
        now: Array,
        *,
        k: int,
    ) -> TopK:
        self.programs += 1
        rows = jnp.arange(items.shape[0])
        after = jnp.concatenate([times, jnp.zeros_like(times[:, :1])], axis=1)
        after = after.at[rows, counts].set(now)
        y, _ = self.model.forward(params, items, self.model.layout, counts[:, None], after)
        queries = self.model.queries(params, y[rows, jnp.maximum(counts - 1, 0)])
        history = self.model.history_items(items, times)
        return ranking.top_k(queries, index, k, history=history, chunk=self.chunk)

    # -- changes -----------------------------------------------------------------------------

    def start(self) -> None:
        """Nothing is left from before."""

    def append(self, key: str, columns: Columns) -> "Future[Appended]":
        """Adds events behind the histories, in memory."""
        del key
        users, events, unknown, _ = raw_inputs.new_events(
            columns.users, columns.items, columns.times, self.catalog
        )
        with self._lock:
            for user, new in zip(users, events, strict=True):
                if user in self._histories:
                    both = zip(self._histories[user], new, strict=True)
                    new = Events(*(np.concatenate(pair) for pair in both))
                self._histories[user] = new
        future: Future[Appended] = Future()
        added = sum(len(new.items) for new in events)
        future.set_result(Appended((added, len(users), unknown, 0, 0)))
        return future

    def delete(self, users: list[UserId]) -> "Future[list[bool]]":
        """Forgets histories."""
        future: Future[list[bool]] = Future()
        future.set_result([self._histories.pop(user, None) is not None for user in users])
        return future

    def stop(self) -> None:
        """Nothing waits."""


def main(argv: Sequence[str] | None = None) -> int:
    """Serves until SIGTERM."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.full_service")
    parser.add_argument("--workdir", required=True, help="run with layout.mode=full")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--max-batch", type=int, default=Limits.max_batch)
    parser.add_argument("--max-wait-ms", type=float, default=Limits.max_wait_ms)
    args = parser.parse_args(argv)
    limits = Limits(max_batch=args.max_batch, max_wait_ms=args.max_wait_ms)
    with running.bind("127.0.0.1", args.port) as listener:
        full = FullHistory.load(pathlib.Path(args.workdir), limits)
        service = Service(full, full, limits, Metrics(), prepare=full.compile)
        print(f"full_service: {running.url_of(listener)}", flush=True)
        return running.run(service, listener, "")


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (JaxrecError, OSError) as error:
        print(f"full_service: error: {error}", file=sys.stderr)
        sys.exit(2)
