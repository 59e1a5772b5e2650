"""The benchmark of online serving, on a tiny service."""

import asyncio
import urllib.parse

import jax
import numpy as np
import pytest

from benchmarks import arrivals, online
from benchmarks.arrivals import Outcome, Target
from benchmarks.full_service import FullHistory
from jaxrec import ranking
from jaxrec.server.limits import Limits
from jaxrec.server.metrics import Metrics
from jaxrec.server.service import Service
from jaxrec.serving.requests import make_request
from jaxrec.serving.state_rows import Events
from tests.server import local
from tests.serving import standin
from tests.serving.standin import ORIGIN


@pytest.fixture(scope="module")
def full():
    config = standin.config()
    config.layout.mode = "full"
    histories = {}
    for user, length in enumerate((1, 5, 15, 30)):
        items, times = standin.history(user, length)
        dense = standin.catalog().vocabulary.encode(items)
        histories[user] = Events(dense, (times - ORIGIN).astype(np.int32))
    limits = Limits(max_batch=4, max_k=16)
    return FullHistory(config, standin.params_of(config), standin.catalog(), histories, limits)


def test_full_histories_are_answered_by_one_forward_pass(full):
    users, request = make_request(full.catalog, [2, 0, 1, 3, 9][:4], 16)
    answer = full.answer(users, request)
    forward = jax.jit(full.model.forward, static_argnames="layout")
    for row, user in enumerate(users):
        items, times = (column[-full.length :] for column in full._histories[user])
        count = len(items)
        padded = np.zeros((2, 1, full.length + 1), np.int32)  # one user alone
        padded[0, 0, :count], padded[1, 0, :count], padded[1, 0, count] = items, times, times[-1]
        lengths = np.full((1, 1), count, np.int32)
        y, _ = forward(
            full.params,
            padded[0, :, :-1],
            layout=full.model.layout,
            lengths=lengths,
            times=padded[1],
        )
        queries = full.model.queries(full.params, y[:, count - 1])
        scores = np.asarray(ranking.scores(queries, full.index))[0, 1:]
        np.testing.assert_allclose(
            answer.scores[row], np.sort(scores)[::-1][:16], rtol=0, atol=1e-5 * np.ptp(scores)
        )
    assert answer.known.all()


def test_arrivals_at_a_service(full):
    """A second of requests and appends: every one is answered and counted."""
    service = Service(full, full, Limits(max_batch=4, max_k=16), Metrics(), prepare=full.compile)
    with local.serving(service) as client:
        url = urllib.parse.urlsplit(str(client.base_url))
        requests = arrivals.Requests([0, 1, 2, 3], full.catalog, k=3, appends=0.3)
        target = Target(url.hostname, url.port)
        asyncio.run(arrivals.until_ready(target))
        outcome = asyncio.run(arrivals.send(target, requests, rate=30, seconds=1, seed=0))
        appended = local.metric(client, "jaxrec_append_requests_count")
    row = online.row_of(outcome, limit_ms=1e6)
    assert row["sustained"]
    assert row["statuses"] == {"200": row["requests"]}
    assert set(row["latency"]) == {"all", "recommend", "append"}
    assert row["batch_requests"]["+Inf"] >= 1
    assert appended == 0  # nothing is committed: histories are in memory
    assert sum(len(events.items) for events in full._histories.values()) > 51


def test_latency_counts_from_the_intended_moment_and_decides():
    answers = [("recommend", 200, 0.01, 0.0)] * 99 + [("append", 200, 0.2, 0.19)] * 3
    outcome = Outcome(10.0, 5.0, answers, [0.0, 4.0], {"1": 3, "+Inf": 9})
    row = online.row_of(outcome, limit_ms=50)
    assert row["sustained"] is False
    assert row["latency"]["recommend"]["p99_ms"] == pytest.approx(10)
    assert row["queue"] == {"mean": 2.0, "most": 4.0}
    good = online.row_of(outcome._replace(answers=answers[:99]), limit_ms=50)
    refused = [("recommend", 429, 0.001, 0.0)]
    assert not online.row_of(outcome._replace(answers=refused), limit_ms=50)["sustained"]
    summary = online.summary([good, {**good, "rate": 15.0}, row])
    assert (summary["sustained_rate"], summary["all_rates_sustained"]) == (15.0, False)
    assert online.summary([row]) == {"sustained_rate": None}


def test_ages_of_a_store(tmp_path):
    rec = local.recommender()
    with rec.open_store(local.fill(rec, tmp_path / "states", users=3), mode="r") as store:
        users = online.sampled(store, 2, seed=0)
        ages = online.ages_of(store, users)
    assert len(users) == 2
    assert ages["events"][-1] in (4, 7)
