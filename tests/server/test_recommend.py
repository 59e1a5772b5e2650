"""Answers over HTTP are those of the Python API, whoever asks at the same time, and whatever."""

import concurrent.futures
import contextlib
import threading

import httpx
import numpy as np
import pytest
from jax import monitoring

from jaxrec.server.batching import Batcher
from jaxrec.server.limits import BODY_BYTES
from tests.server import local
from tests.serving.standin import ITEMS, ORIGIN

RAW = [1000 + 10 * i for i in range(ITEMS)]


@pytest.fixture(scope="module")
def generation(tmp_path_factory):
    rec = local.recommender()
    return local.generation(rec, local.fill(rec, tmp_path_factory.mktemp("served") / "states"))


@pytest.fixture(scope="module")
def client(generation):
    with local.serving(local.service_of(generation)) as client:
        yield client


def ask(client, **body):
    return client.post("/recommend", json=body)


REQUESTS = [
    {"users": [7], "k": 5},
    {"users": [1, 99, 7], "k": 3},
    {"users": [3], "k": 16, "exclude": RAW[:18]},
    {"users": [4, 5], "exclude": [RAW[:3], [999]], "exclude_seen": True},
    {"users": [6], "candidates": [1000, 1100, 1290, 999]},
    {"users": [2, 100], "k": 2, "candidates": [RAW[:9], RAW[5:8]], "exclude": [1050]},
    {"users": [5], "now": ORIGIN + 10**6},
    {"users": [0, 1, 2, 3], "k": 1, "now": [ORIGIN, ORIGIN + 1.5, ORIGIN, ORIGIN]},
]


def test_eight_clients_at_once_get_the_answers_of_the_python_api(client, generation, monkeypatch):
    """Exactly: every batch that arrivals made is asked again in Python, with the same users."""
    batches = []
    answer = generation.rec.answer

    def record(store, users, request):
        batches.append((users, request))
        return answer(store, users, request)

    monkeypatch.setattr(generation.rec, "answer", record, raising=False)
    barrier = threading.Barrier(len(REQUESTS))

    def one(body):
        barrier.wait()
        return [ask(client, **body) for _ in range(4)]

    with concurrent.futures.ThreadPoolExecutor(len(REQUESTS)) as pool:
        answers = list(pool.map(one, REQUESTS))
    given = {}
    for users, request in batches:
        whole = answer(generation.store, users, request)
        for row, user in enumerate(users):
            given.setdefault(user, []).append((whole, row))
    monkeypatch.undo()
    rec = generation.rec
    for body, responses in zip(REQUESTS, answers, strict=True):
        options = {name: value for name, value in body.items() if name != "users"}
        items, scores = rec.recommend(generation.store, body["users"], **options)
        for response in responses:
            assert response.status_code == 200, response.text
            results = response.json()["results"]
            for row, (user, result) in enumerate(zip(body["users"], results, strict=True)):
                count = len(result["items"])
                assert count == np.isfinite(scores[row]).sum()
                assert result["items"] == items[row, :count].tolist()
                # alone: another shape of the same product, so the same up to rounding
                np.testing.assert_allclose(result["scores"], scores[row, :count], rtol=1e-5)
                # in its batch: to the last bit
                assert any(
                    result["scores"] == whole.scores[r, :count].tolist() for whole, r in given[user]
                )
                assert result["known"] == (user < local.USERS)
    assert local.metric(client, "jaxrec_batch_requests_count") == len(batches)


def test_nothing_compiles_behind_ready(client, generation):
    compiled = []

    def listen(event, seconds, **more):
        if "compile" in event:
            compiled.append(event)

    before = generation.programs
    monitoring.register_event_duration_secs_listener(listen)
    try:
        for body in REQUESTS:
            assert ask(client, **body).status_code == 200
        for user, count in ((1, 1), (50, 16), (7, 9)):
            events = [
                {"user": user, "item": RAW[i], "time": ORIGIN + 10**7 + i} for i in range(count)
            ]
            assert client.post("/events", json={"events": events}).status_code == 200
        events = [{"user": u, "item": 1000, "time": ORIGIN + 10**8} for u in range(16)]
        assert client.post("/events", json={"events": events}).status_code == 200
    finally:
        monitoring.unregister_event_duration_listener(listen)
    assert generation.programs == before
    assert compiled == []
    assert local.metric(client, "jaxrec_compiled_programs") == before


def test_a_full_queue_is_429_and_accepted_requests_are_answered(generation, monkeypatch, tmp_path):
    rec = generation.rec
    path = local.fill(rec, tmp_path / "states", users=2)
    limits = local.Limits(max_batch=4, max_k=16, max_ids=20, max_events=16, timeout=60, queue=2)
    gate, inside = threading.Event(), threading.Event()
    original = Batcher._answer

    def slow(self, group):
        inside.set()
        gate.wait(60)
        original(self, group)

    monkeypatch.setattr(Batcher, "_answer", slow)
    service = local.service_of(local.generation(rec, path), limits)
    with (
        local.serving(service) as client,
        concurrent.futures.ThreadPoolExecutor(3) as pool,
    ):
        first = pool.submit(ask, client, users=[1])
        assert inside.wait(60)
        waiting = [pool.submit(ask, client, users=[0]) for _ in range(2)]
        while local.metric(client, 'jaxrec_queue_length{queue="recommend"}') < 2:
            pass
        refused = ask(client, users=[1])
        assert refused.status_code == 429
        assert refused.headers["retry-after"] == "1"
        assert "2 requests are waiting" in refused.json()["error"]
        gate.set()
        assert [f.result().status_code for f in (first, *waiting)] == [200] * 3


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"users": [1], "k": 0}, "k: input should be greater than or equal to 1; k is the length"),
        ({"users": [1], "k": 10**9}, "k: 1000000000 is more than 16"),
        ({"users": [1], "k": 2.5}, "k: "),
        ({"users": [1], "k": "3"}, "k: "),
        ({"users": [1], "k": True}, "k: "),
        ({}, "users is missing: it is a list of user ids"),
        ({"users": []}, "users: "),
        ({"users": 5}, "users: "),
        ({"users": [1.5]}, "users[0]: "),
        ({"users": [None]}, "users[0]: "),
        ({"users": [True]}, "users[0]: "),
        ({"users": [2**63]}, "users[0]: "),
        ({"users": ["1"]}, "user id '1': the training data's user ids are integers, not text"),
        ({"users": [1, "1"]}, "users: integers and texts are mixed"),
        ({"users": [1] * 5}, "users: 5 is more than 4"),
        ({"users": [1], "now": "today"}, "now: "),
        ({"users": [1], "now": [ORIGIN, ORIGIN]}, "now has shape (2,)"),
        ({"users": [1], "now": -1}, "'now' is negative"),
        ({"users": [1], "now": ORIGIN * 1000}, "look like milliseconds"),
        ({"users": [1], "now": 10**400}, "now"),
        ({"users": [1], "candidates": ["a"]}, "candidates: vocabulary: its item ids are integers"),
        ({"users": [1], "exclude": [["a"]]}, "exclude: "),
        ({"users": [1], "exclude": [1000, "a"]}, "exclude: integers and texts are mixed"),
        ({"users": [1], "exclude": [[1000], [1000]]}, "exclude: 2 entries for 1 users"),
        ({"users": [1], "exclude": 1000}, "exclude: "),
        ({"users": [1], "candidates": RAW[:21]}, "candidates: 21 is more than 20"),
        ({"users": [1], "K": 3}, "K: there is no such field"),
        ([1], "a JSON object is needed"),
    ],
)
def test_requests_that_cannot_be_used_are_named(client, body, message):
    response = client.post("/recommend", json=body)
    assert response.status_code == 422
    assert set(response.json()) == {"error"}
    assert message in response.json()["error"]
    assert "\n" not in response.json()["error"]


@pytest.mark.parametrize(
    ("content", "status"),
    [
        (b"", 422),
        (b"{", 400),
        (b"\xff", 400),
        (b"[" * 100_000, 400),
        (b'{"users": [1], "now": NaN}', 422),
        (b'{"users": [1], "now": Infinity}', 422),
        (b'{"users": ["a\\u0000"]}', 422),
        (b'{"users": ["\\ud800"]}', 422),
        (b'{"users": [' + b"1" * 5000 + b"]}", 400),
        (b" " * (BODY_BYTES + 1), 413),
    ],
)
def test_bodies_that_are_no_request(client, content, status):
    response = client.post(
        "/recommend", content=content, headers={"content-type": "application/json"}
    )
    assert (response.status_code, set(response.json())) == (status, {"error"})
    assert client.get("/health").json() == {"state": "ready"}


def test_a_body_without_a_length_is_bounded_too(client):
    chunks = (b" " * (1 << 20) for _ in range(6))
    # it may close the connection before the client has sent everything
    with contextlib.suppress(httpx.WriteError, httpx.ReadError, httpx.RemoteProtocolError):
        assert client.post("/recommend", content=chunks).status_code == 413
    assert client.get("/health").status_code == 200


def test_routes(client):
    assert client.get("/nope").status_code == 404
    assert client.get("/nope").json() == {"error": "there is no such route: see /docs"}
    assert client.get("/recommend").status_code == 405
    assert client.get("/docs").status_code == 200
    paths = client.get("/openapi.json").json()["paths"]
    assert set(paths) >= {"/recommend", "/events", "/users/{user_id}", "/health", "/ready"}
    assert client.get("/ready").json() == {"state": "ready"}
    text = client.get("/metrics").text
    for name in ("http_requests_total", "http_request_seconds", "batch_users", "queue_length"):
        assert f"jaxrec_{name}" in text
    assert 'route="other",status="404"' in text


def test_candidates_may_be_none_at_all(client):
    (result,) = ask(client, users=[1], candidates=[]).json()["results"]
    assert (result["items"], result["scores"]) == ([], [])
