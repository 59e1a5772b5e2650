"""Tokens, addresses, swaps under load, and a real process that is killed and stopped."""

import concurrent.futures
import contextlib
import os
import shutil
import signal
import subprocess
import sys
import threading
import time

import httpx
import jax
import pytest

from jaxrec.cli import serve
from jaxrec.errors import ConfigError, StoreError
from jaxrec.server import running
from jaxrec.server.app import create_app
from tests.server import local
from tests.serving.standin import ORIGIN

TOKEN = "0123456789abcdef"
T = ORIGIN + 10**7


@pytest.fixture(scope="module", autouse=True)
def one_device():
    """Programs for one device compile sooner than those for the eight of the tests."""
    devices = jax.local_devices()[:1]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jax, "local_devices", lambda: devices)
        patch.delenv("JAXREC_TOKEN", raising=False)
        yield


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two runs with other weights, and a store of each."""
    folder = tmp_path_factory.mktemp("runs")
    result = []
    for name, seed in (("old", 0), ("new", 1)):
        rec = local.recommender(seed=seed)
        states = local.fill(rec, folder / f"{name}-states", users=4)
        with rec.open_store(states, mode="r") as store:
            result.append((local.run_folder(rec, store, folder / name), states))
    return result


def load(run, limits=local.LIMITS):
    return local.service_of(local.Generation.load(*run, limits))


# -- tokens and addresses ------------------------------------------------------------------------


def test_tokens(runs):
    with local.serving(load(runs[0]), token=TOKEN) as client:
        assert client.post("/recommend", json={"users": [1]}).status_code == 200
        for given in ("", "Bearer", "Bearer wrong", f"Basic {TOKEN}", f"Bearer {TOKEN}x"):
            for path in ("/metrics", "/docs", "/openapi.json", "/nope"):
                refused = client.get(path, headers={"authorization": given})
                assert refused.status_code == 401
                assert "Authorization: Bearer TOKEN" in refused.json()["error"]
            assert client.get("/health", headers={"authorization": given}).status_code == 200
            assert client.get("/ready", headers={"authorization": given}).status_code == 200
        missing = {"workdir": "nowhere", "states": str(runs[1][1])}
        refused = client.post("/admin/swap", json=missing)
        assert refused.status_code == 409
        assert "nowhere has no config.json" in refused.json()["error"]
        own = {"workdir": str(runs[0][0]), "states": str(runs[0][1])}
        assert "open for writing" in client.post("/admin/swap", json=own).json()["error"]
        assert client.post("/recommend", json={"users": [1]}).json()["generation"] == 1


def test_idle_connections_outlive_those_of_load_balancers(runs):
    service = load(runs[0])
    assert running.configuration(create_app(service), service).timeout_keep_alive > 60
    service.stop()


def test_without_a_token_only_local_names_are_answered_and_nothing_is_swapped(runs):
    with local.serving(load(runs[0])) as client:
        refused = client.get("/metrics", headers={"host": "evil.example"})
        assert (refused.status_code, "localhost" in refused.json()["error"]) == (403, True)
        for host in ("localhost", "localhost:80", "[::1]:80", "127.0.0.1"):
            assert client.get("/metrics", headers={"host": host}).status_code == 200
        swap = client.post("/admin/swap", json={"workdir": "a", "states": "b"})
        assert (swap.status_code, "--token-file" in swap.json()["error"]) == (403, True)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.0.7", "example.com", ""])
def test_an_address_of_others_needs_a_token(host):
    with pytest.raises(ConfigError, match=f"--host={host}: reachable by others"):
        running.check_address(host, "")
    running.check_address(host, TOKEN)


def test_addresses_of_this_machine_need_none(monkeypatch, tmp_path):
    for host in ("localhost", "127.0.0.1", "127.1.2.3", "::1"):
        running.check_address(host, "")
    assert running.read_token("") == ""
    monkeypatch.setenv("JAXREC_TOKEN", "from-environment")
    assert running.read_token("") == "from-environment"
    (tmp_path / "token").write_text(f"{TOKEN}\n")
    assert running.read_token(str(tmp_path / "token")) == TOKEN
    (tmp_path / "token").write_text("two words")
    with pytest.raises(ConfigError, match="openssl rand"):
        running.read_token(str(tmp_path / "token"))
    with pytest.raises(ConfigError, match="cannot be read"):
        running.read_token(str(tmp_path / "none"))


@pytest.mark.parametrize(
    ("flags", "error", "message"),
    [
        (["--host=0.0.0.0"], ConfigError, "give a token"),
        (["--port=70000"], ConfigError, "--port=70000: a number from 0"),
        (["--max-batch=0"], ConfigError, "--max-batch=0: a number from 1"),
        (["--timeout=nan"], ConfigError, "--timeout=nan"),
        (["--states=nowhere"], StoreError, "there is no store here"),
        (["--states=gs://bucket/states"], ConfigError, "--journal"),
    ],
)
def test_flags_that_cannot_be_used(runs, flags, error, message):
    given = [f"--workdir={runs[0][0]}", f"--states={runs[0][1]}", "--port=0", *flags]
    with pytest.raises(error, match=message):
        serve.main(given)


# -- swap ----------------------------------------------------------------------------------------


def test_a_swap_under_load_fails_no_request_and_loses_no_event(runs):
    service = load(runs[0])
    stop = threading.Event()

    def reader(client):
        answers = []
        while not stop.is_set():
            answers.append(client.post("/recommend", json={"users": [1, 2]}))
        return answers

    def appender(client):
        answers = []
        while not stop.is_set():
            event = {"user": 60, "item": 1000 + 10 * (len(answers) % 9), "time": T + len(answers)}
            answers.append(client.post("/events", json={"events": [event]}))
        return answers

    with (
        local.serving(service, token=TOKEN) as client,
        concurrent.futures.ThreadPoolExecutor(3) as pool,
    ):
        client.delete("/users/3")
        work = [pool.submit(job, client) for job in (reader, reader, appender)]
        try:
            body = {"workdir": str(runs[1][0]), "states": str(runs[1][1])}
            swapped = client.post("/admin/swap", json=body)
            assert swapped.status_code == 200, swapped.text
            for _ in range(3):
                assert client.post("/recommend", json={"users": [1]}).json()["generation"] == 2
        finally:
            stop.set()
        answers = [answer for future in work for answer in future.result()]
        assert {answer.status_code for answer in answers} == {200}
        appended = len(work[2].result())
        assert swapped.json()["generation"] == 2
        (forgotten,) = client.post("/recommend", json={"users": [3]}).json()["results"]
        assert forgotten["known"] is False
        new = service.generation
        assert new.store.read([60])[0]["events"][0] == appended
        assert local.metric(client, "jaxrec_store_generation") == 2
        items, scores = new.rec.recommend(new.store, [1])
        (result,) = client.post("/recommend", json={"users": [1]}).json()["results"]
        assert (result["items"], result["scores"]) == (items[0].tolist(), scores[0].tolist())
    # the old store is given back, and so is the new one at the end
    for run in runs:
        local.Generation.load(*run, local.LIMITS).retire()


# -- a process -----------------------------------------------------------------------------------


def start(run, *more, flags=local.FLAGS, **environment):
    command = [sys.executable, "-m", "jaxrec.cli.serve", f"--workdir={run[0]}"]
    child = subprocess.Popen(
        [*command, f"--states={run[1]}", "--port=0", *flags, *more],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "JAX_PLATFORMS": "cpu", **environment},
    )
    line = child.stdout.readline()
    assert "http://" in line, line + child.stderr.read()
    return child, httpx.Client(base_url=line.split()[2], timeout=60)


def content(store):
    """Path -> bytes, without who held the store last."""
    files = {path: path.read_bytes() for path in store.rglob("*") if path.is_file()}
    return {path: data for path, data in files.items() if path.suffix != ".lock"}


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
def test_a_process_that_compiles_stops_at_once(runs, tmp_path, number, status):
    states = shutil.copytree(runs[0][1], tmp_path / "states")
    before = content(states)
    # the default sizes are hundreds of programs, and none of them is in a cache
    child, client = start((runs[0][0], states), flags=(), JAX_COMPILATION_CACHE_DIR="")
    with client:
        while True:
            with contextlib.suppress(httpx.ConnectError):
                assert client.get("/ready").status_code == 503
                break
            assert child.poll() is None
            time.sleep(0.05)
        began = time.monotonic()
        child.send_signal(number)
        assert child.wait(60) == status
    assert time.monotonic() - began < 10
    output, said = child.communicate()
    assert (output, said) == ("", "")
    assert content(states) == before
    rec = local.recommender()
    with rec.open_store(states) as store:  # nobody holds it any more
        assert store.read([1])[1].all()


def test_a_compilation_that_does_not_end_is_left_behind(runs, tmp_path):
    compiles, go_on = threading.Event(), threading.Event()

    def compile_for_ever():
        compiles.set()
        go_on.wait(60)

    states = shutil.copytree(runs[0][1], tmp_path / "states")
    service = load((runs[0][0], states))
    service._prepare = compile_for_ever
    service.start()
    assert compiles.wait(10)
    service.stop()
    assert (service.state, service.compiling) == ("stopping", True)
    go_on.set()
    service._thread.join(10)
    assert (service.state, service.compiling) == ("stopping", False)
    assert not service.changes._thread.is_alive()


def test_a_killed_process_has_every_acknowledged_event_and_a_stopped_one_answers(runs):
    child, client = start(runs[0])
    acknowledged = []
    with client:
        local.wait_until_ready(client)
        killer = threading.Timer(1.0, child.kill)
        killer.start()
        try:
            while True:
                body = {
                    "events": [{"user": 70, "item": 1000, "time": T + len(acknowledged)}],
                    "idempotency_key": f"n{len(acknowledged)}",
                }
                acknowledged.append(client.post("/events", json=body).raise_for_status())
        except httpx.HTTPError:
            pass
    killer.join()
    child.communicate()
    assert child.returncode == -signal.SIGKILL
    child, client = start(runs[0], "--max-wait-ms=1000")
    with client:
        local.wait_until_ready(client)
        # the one that was not acknowledged: added once, whether it had been added or not
        client.post("/events", json=body).raise_for_status()
        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            waiting = pool.submit(client.post, "/recommend", json={"users": [70]})
            time.sleep(0.3)  # it waits for others to share its batch
            child.send_signal(signal.SIGTERM)
            assert waiting.result().status_code == 200
    assert child.wait(60) == 0, child.stderr.read()
    assert child.stderr.read() == ""
    child.communicate()
    rec = local.recommender()
    with rec.open_store(runs[0][1], mode="r") as store:
        assert store.read([70])[0]["events"][0] == len(acknowledged) + 1
