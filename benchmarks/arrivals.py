"""Requests at given moments over HTTP, and what became of them."""

import asyncio
import json
import re
from typing import NamedTuple

import numpy as np

from jaxrec.data.catalog import Catalog
from jaxrec.types import Json, UserId

POLL = 0.25  # seconds between two looks at the queue
READY = 1800.0  # seconds in which a service must have compiled
TIMEOUT = 60.0


class Target(NamedTuple):
    """Where a service listens."""

    host: str
    port: int


class Outcome(NamedTuple):
    """What became of the requests of a rate.

    rate: asked for, per second. seconds: until the last answer. answers: (recommend or append,
    status, seconds from the intended moment to the answer, seconds that it was sent late) each.
    queue: requests that waited in the service, looked at every `POLL` seconds. batches: how many
    calls to the model had at most so many requests.
    """

    rate: float
    seconds: float
    answers: list[tuple[str, int, float, float]]
    queue: list[float]
    batches: dict[str, int]


class Requests:
    """Draws requests: users uniformly, items by their popularity, a share of appends."""

    def __init__(self, users: list[UserId], catalog: Catalog, *, k: int, appends: float) -> None:
        self.users, self.k, self.appends = users, k, appends
        counts = catalog.counts[1:].astype(np.float64) + 1
        self._popularity, self._items = counts / counts.sum(), catalog.vocabulary.ids
        # behind every event of the data, and one second later each
        self._time = catalog.time_origin + 2**31 - 10**8

    def draw(self, rng: np.random.Generator, count: int) -> list[tuple[str, bytes]]:
        """Kind and HTTP request of each."""
        append = rng.random(count) < self.appends
        users = rng.integers(0, len(self.users), count)
        items = rng.choice(len(self._items), count, p=self._popularity)
        result = []
        for is_append, user, item in zip(append, users, items, strict=True):
            if is_append:
                self._time += 1
                event = {
                    "user": self.users[user],
                    "item": self._items[item].item(),
                    "time": self._time,
                }
                result.append(("append", post("/events", {"events": [event]})))
            else:
                body = {"users": [self.users[user]], "k": self.k}
                result.append(("recommend", post("/recommend", body)))
        return result


def post(path: str, body: Json) -> bytes:
    """An HTTP/1.1 request."""
    content = json.dumps(body).encode()
    head = (
        f"POST {path} HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: application/json\r\n"
        f"content-length: {len(content)}\r\n\r\n"
    )
    return head.encode() + content


def get(path: str) -> bytes:
    """An HTTP/1.1 request."""
    return f"GET {path} HTTP/1.1\r\nhost: 127.0.0.1\r\n\r\n".encode()


class Pool:
    """Connections that are kept: a general client costs more of this machine than the service."""

    def __init__(self, target: Target, most: int) -> None:
        self._target, self._free = target, asyncio.Semaphore(most)
        self._idle: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []

    async def ask(self, request: bytes) -> tuple[int, bytes]:
        """Status and body; status 0 where there was no answer."""
        async with self._free:
            try:
                async with asyncio.timeout(TIMEOUT):
                    return await self._ask(request)
            except (OSError, EOFError, TimeoutError):
                return 0, b""

    async def _ask(self, request: bytes) -> tuple[int, bytes]:
        if self._idle:
            reader, writer = self._idle.pop()
        else:
            reader, writer = await asyncio.open_connection(*self._target)
        writer.write(request)
        head = await reader.readuntil(b"\r\n\r\n")
        length = re.search(rb"content-length: (\d+)", head, re.IGNORECASE)
        body = await reader.readexactly(int(length[1]) if length else 0)
        self._idle.append((reader, writer))
        return int(head.split(b" ", 2)[1]), body

    async def close(self) -> None:
        """Closes what is idle."""
        for _, writer in self._idle:
            writer.close()
            await writer.wait_closed()


async def until_ready(target: Target) -> None:
    """Returns when the service answers requests. Raises TimeoutError."""
    pool = Pool(target, 1)
    async with asyncio.timeout(READY):
        while (await pool.ask(get("/ready")))[0] != 200:
            await asyncio.sleep(0.2)
    await pool.close()


async def send(
    target: Target,
    requests: Requests,
    *,
    rate: float,
    seconds: float,
    seed: int,
    connections: int = 256,
) -> Outcome:
    """Sends requests at the moments of a Poisson process and waits for every answer."""
    rng = np.random.default_rng(seed)
    count = max(int(rng.poisson(rate * seconds)), 1)
    moments = np.sort(rng.uniform(0, seconds, count)).tolist()
    drawn = requests.draw(rng, count)
    pool, watch = Pool(target, connections), Pool(target, 1)
    before = await batches(watch)
    loop = asyncio.get_running_loop()
    answers: list[tuple[str, int, float, float]] = []
    start = loop.time()

    async def one(kind: str, request: bytes, moment: float) -> None:
        late = loop.time() - start - moment
        status, _ = await pool.ask(request)
        answers.append((kind, status, loop.time() - start - moment, late))

    queue = [0.0]
    watching = asyncio.create_task(_watch(watch, queue))
    tasks = []
    for (kind, request), moment in zip(drawn, moments, strict=True):
        if (wait := start + moment - loop.time()) > 0:
            await asyncio.sleep(wait)
        tasks.append(asyncio.create_task(one(kind, request, moment)))
    await asyncio.gather(*tasks)
    took = loop.time() - start
    watching.cancel()
    await asyncio.gather(watching, return_exceptions=True)
    # the connection that watched may have been cut in an answer
    last = Pool(target, 1)
    after = await batches(last)
    for each in (pool, watch, last):
        await each.close()
    made = {size: after[size] - before.get(size, 0) for size in after}
    return Outcome(rate, took, answers, queue, made)


async def _watch(pool: Pool, queue: list[float]) -> None:
    while True:
        queue.append((await metrics(pool))['jaxrec_queue_length{queue="recommend"}'])
        await asyncio.sleep(POLL)


async def batches(pool: Pool) -> dict[str, int]:
    """At most so many requests -> calls to the model, since the service started."""
    found = {}
    for name, value in (await metrics(pool)).items():
        match = re.fullmatch(r'jaxrec_batch_requests_bucket\{le="(.*)"\}', name)
        if match:
            found[match[1]] = int(value)
    return found


async def metrics(pool: Pool) -> dict[str, float]:
    """Name with labels -> value."""
    _, body = await pool.ask(get("/metrics"))
    lines = [line.rpartition(" ") for line in body.decode().splitlines() if line[:1] != "#"]
    return {name: float(value) for name, _, value in lines}
