"""A service in this process, on a free port of 127.0.0.1."""

import contextlib
import functools
import threading
import time

import httpx
import jax
import uvicorn

from jaxrec.server import running
from jaxrec.server.app import create_app
from jaxrec.server.generation import Generation
from jaxrec.server.journal import Journal
from jaxrec.server.limits import Limits
from jaxrec.server.metrics import Metrics
from jaxrec.server.service import Service, journal_folder
from jaxrec.server.writing import Writer
from jaxrec.serving import Recommender, snapshot
from tests.serving import standin

KEEP_SEEN = 4
# few and small sizes: fewer programs
LIMITS = Limits(max_batch=4, max_k=16, max_ids=20, max_events=16, timeout=60)
FLAGS = ["--max-batch=4", "--max-k=16", "--max-ids=20", "--max-events=16", "--timeout=60"]
USERS = 8


@functools.cache
def recommender(text=False, seed=0):
    """One for every module: equal calls share what is compiled. seed: of other weights."""
    config = standin.config(layers=2)
    params = jax.tree.map(lambda x: x * (1 + seed), standin.params_of(config))
    return Recommender(
        config,
        params,
        standin.catalog(text),
        step=1,
        devices=jax.local_devices()[:1],
        shapes=LIMITS.shapes(KEEP_SEEN),
    )


def fill(rec, path, users=USERS):
    """A store of users with histories of several ages."""
    with rec.create_store(path, num_shards=2, keep_seen=KEEP_SEEN) as store:
        for user in range(users):
            items, times = standin.history(user, 1 + 3 * user)
            rec.append(store, [user] * len(items), items, times)
    return path


def run_folder(rec, store, folder):
    """A folder that `Recommender.load` takes, without a training."""
    snapshot.save(rec, store, folder)
    return folder / "1" / "model"


def generation(rec, path, number=1):
    return Generation(rec, rec.open_store(path), number, path)


def service_of(gen, limits=LIMITS):
    metrics = Metrics()
    journal = Journal(journal_folder(gen.states))
    writer = Writer(gen, journal, limits, metrics)
    return Service(gen, writer, limits, metrics, prepare=gen.compile)


@contextlib.contextmanager
def serving(service, token=""):
    """A client of the service, which is ready."""
    listener = running.bind("127.0.0.1", 0)
    server = uvicorn.Server(running.configuration(create_app(service, token), service))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    headers = {"authorization": f"Bearer {token}"} if token else {}
    try:
        with httpx.Client(base_url=running.url_of(listener), headers=headers, timeout=60) as client:
            wait_until_ready(client)
            yield client
    finally:
        server.should_exit = True
        thread.join()
        listener.close()


def wait_until_ready(client, seconds=300):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        with contextlib.suppress(httpx.ConnectError):
            if client.get("/ready").status_code == 200:
                return
        time.sleep(0.05)
    raise TimeoutError(client.get("/health").text)


def metric(client, name):
    """The value of a line of /metrics."""
    lines = client.get("/metrics").text.splitlines()
    return next(float(line.rpartition(" ")[2]) for line in lines if line.startswith(name + " "))
