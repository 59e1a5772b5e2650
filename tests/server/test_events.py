"""Events and deletions over HTTP: durable, exactly once with a key, whatever fails between."""

import concurrent.futures
import json

import pytest

from jaxrec.errors import StoreError
from jaxrec.server import appending
from jaxrec.server.journal import Columns, Entry, Journal
from jaxrec.server.service import journal_folder
from jaxrec.server.writing import Writer
from jaxrec.state_store.store import UserStateStore
from tests.server import local
from tests.serving.standin import ORIGIN

T = ORIGIN + 10**7


def event(user, item=1000, time=T):
    return {"user": user, "item": item, "time": time}


@pytest.fixture(scope="module")
def generation(tmp_path_factory):
    rec = local.recommender()
    path = local.fill(rec, tmp_path_factory.mktemp("served") / "states", users=2)
    return local.generation(rec, path)


@pytest.fixture(scope="module")
def client(generation):
    with local.serving(local.service_of(generation)) as client:
        yield client


def count(generation, user):
    return int(generation.store.read([user])[0]["events"][0])


def test_events_are_in_the_state_when_they_are_answered(client, generation):
    items, times = [1000, 1010, 999], [T, T + 1, T + 2]
    events = [event(20, *pair) for pair in zip(items, times, strict=True)]
    assert client.post("/recommend", json={"users": [20]}).json()["results"][0]["known"] is False
    response = client.post("/events", json={"events": events})
    assert response.json() == {
        "events": 2, "users": 1, "unknown_items": 1, "late": 0, "repeated": 0,
        "incomplete": 0, "already_applied": False,
    }  # fmt: skip
    assert count(generation, 20) == 2
    assert client.post("/recommend", json={"users": [20]}).json()["results"][0]["known"] is True
    again = client.post("/events", json={"events": events[:1]}).json()  # no key: one more
    assert (again["events"], again["repeated"]) == (1, 1)


@pytest.mark.parametrize("field", ["user", "item", "time"])
def test_events_with_nulls(client, generation, field, monkeypatch):
    events = [event(27), event(27) | {field: None}, event(28, 1010)]
    refused = client.post("/events", json={"events": events})
    assert refused.status_code == 422
    said = f"column events.{field} is null in 1 rows, first at position 1. Remove these rows"
    assert refused.json()["error"] == said
    assert not generation.store.read([27])[1].any()
    monkeypatch.setattr(type(generation), "incomplete", "drop")
    answer = client.post("/events", json={"events": events}).json()
    assert (answer["events"], answer["incomplete"]) == (2, 1)
    refused = client.post("/events", json={"events": events[1:2]})
    assert refused.status_code == 422
    assert refused.json()["error"] == "events: no rows are left, all 1 are incomplete"
    client.delete("/users/27")
    client.delete("/users/28")


def test_a_key_adds_once(client, generation):
    body = {"events": [event(21)], "idempotency_key": "a"}
    assert client.post("/events", json=body).json()["already_applied"] is False
    for number in range(5):  # more sources than a shard of the store remembers
        client.post("/events", json={"events": [event(21, 1010, T + number)]})
    header = {"idempotency-key": "a"}
    again = client.post("/events", json={"events": [event(21)]}, headers=header).json()
    assert (again["already_applied"], again["events"]) == (True, 1)
    assert count(generation, 21) == 6
    other = client.post("/events", json={"events": [event(21, 1020)]}, headers=header)
    assert other.status_code == 422
    assert "'a'" in other.json()["error"]
    both = client.post("/events", json={**body, "idempotency_key": "b"}, headers=header)
    assert "differ" in both.json()["error"]


def test_a_key_sent_at_once_by_many_adds_once(client, generation):
    body = {"events": [event(22), event(23)], "idempotency_key": "many"}
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        done = [pool.submit(client.post, "/events", json=body) for _ in range(4)]
        answers = [future.result().json() for future in done]
    assert sorted(answer["already_applied"] for answer in answers) == [False, True, True, True]
    assert count(generation, 22) == 1


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"events": []}, "events: "),
        ({"events": [{"user": 1, "item": 1000}]}, "events[0].time is missing"),
        ({"events": [event("x")]}, "user id 'x': the training data's user ids are integers"),
        ({"events": [event(1, "x")]}, "its item ids are integers"),
        ({"events": [event(1), event("1")]}, "events.user: integers and texts are mixed"),
        ({"events": [event(1, 1000, -1)]}, "events.time is negative"),
        ({"events": [event(1, 1000, ORIGIN * 1000)]}, "look like milliseconds"),
        ({"events": [event(1, 1000, 10**10)]}, "seconds since 1970"),
        ({"events": [event(1)] * 17}, "events: 17 is more than 16"),
        ({"events": [event(1)], "idempotency_key": ""}, "idempotency_key: "),
    ],
)
def test_events_that_cannot_be_used_change_nothing(client, generation, body, message):
    before = count(generation, 1)
    response = client.post("/events", json=body)
    assert response.status_code == 422
    assert message in response.json()["error"]
    assert count(generation, 1) == before


def test_users_are_forgotten(client, generation):
    client.post("/events", json={"events": [event(24)]})
    assert client.delete("/users/24").json() == {"deleted": True}
    assert client.delete("/users/24").json() == {"deleted": False}
    assert not generation.store.read([24])[1][0]
    response = client.delete("/users/abc")
    assert response.status_code == 422
    assert "integers" in response.json()["error"]


# -- what fails between ------------------------------------------------------------------------


@pytest.fixture
def small(tmp_path):
    rec = local.recommender()
    return local.generation(rec, local.fill(rec, tmp_path / "states", users=0))


def writer_of(generation):
    metrics = local.Metrics()
    journal = Journal(journal_folder(generation.states))
    writer = Writer(generation, journal, local.LIMITS, metrics)
    writer.start()
    return writer


def columns(*users):
    return Columns(list(users), [1000] * len(users), [T] * len(users))


def test_an_append_cut_by_a_kill_is_finished_once(small):
    """Killed between the journal and the store, or between the store and its answer."""
    journal = Journal(journal_folder(small.states))
    journal.begin([Entry("k", columns(1).digest, columns(1))], 4)
    journal.close()
    for _ in range(2):  # the second one finds it finished
        writer = writer_of(small)
        assert writer.append("k", columns(1)).result().already_applied
        writer.stop()
        assert count(small, 1) == 1
    journal = Journal(journal_folder(small.states))
    group = journal.begin([Entry("l", columns(2).digest, columns(2))], 4)
    appending.write(small.rec, small.store, group)
    journal.close()
    writer = writer_of(small)
    assert writer.append("l", columns(2)).result().counts is None
    writer.stop()
    assert count(small, 2) == 1


def test_a_damaged_user_stops_nobody_else(small, monkeypatch):
    writer = writer_of(small)
    update = UserStateStore.update

    def failing(self, users, function, **options):
        if 3 in users:
            raise StoreError("user 3 is damaged", users)
        update(self, users, function, **options)

    monkeypatch.setattr(UserStateStore, "update", failing)
    futures = [writer.append("", columns(user)) for user in (2, 3, 4)]
    assert [f.exception() is None for f in futures] == [True, False, True]
    assert (count(small, 2), count(small, 4)) == (1, 1)
    writer.stop()


def test_an_append_written_in_part_is_finished_before_the_next(small, monkeypatch):
    writer = writer_of(small)
    update, fail = UserStateStore.update, [True]

    def failing(self, users, function, **options):
        update(self, users, function, **options)
        if fail:
            fail.pop()
            raise StoreError("the disk is full", users[:1])

    monkeypatch.setattr(UserStateStore, "update", failing)
    with pytest.raises(StoreError, match="full"):
        writer.append("a", columns(1, 2)).result()
    writer.append("", columns(1)).result()
    assert writer.append("a", columns(1, 2)).result().already_applied
    assert (count(small, 1), count(small, 2)) == (2, 1)
    writer.stop()


def test_the_journal_forgets_the_oldest_and_names_damage(tmp_path):
    journal = Journal(tmp_path, file_bytes=300)
    for number in range(9):
        entry = Entry(f"k{number}", columns(number).digest, columns(number))
        journal.done(journal.begin([entry], 4), [(1, 1, 0, 0, 0)])
    assert journal.find("k0", columns(0).digest) is None
    assert journal.find("k8", columns(8).digest) == ((1, 1, 0, 0, 0),)
    journal.close()
    with open(tmp_path / "current.jsonl", "ab") as file:
        file.write(b'{"begin": 99')  # cut by a kill
    again = Journal(tmp_path, file_bytes=300)
    assert again.find("k8", columns(8).digest) == ((1, 1, 0, 0, 0),)
    assert [c.users for c in again.events()][-1] == [8]
    again.close()
    (tmp_path / "previous.jsonl").write_text("{}\nnonsense\n")
    with pytest.raises(StoreError, match="line 2: damaged"):
        Journal(tmp_path)
    for line in ('{"begin": 1}', '{"begin": 1, "appends": [7]}', '{"begin": [], "appends": {}}'):
        (tmp_path / "previous.jsonl").write_text(f"{line}\n")
        with pytest.raises(StoreError, match=r"previous\.jsonl: damaged: .*move the folder away"):
            Journal(tmp_path)


def test_a_new_store_gets_what_it_lacks(small, tmp_path):
    """From a journal that covers more than what came later; twice gives the same."""
    rec = small.rec
    new = rec.open_store(local.fill(rec, tmp_path / "new", users=3))
    had = [len(local.standin.history(user, 1 + 3 * user)[0]) for user in range(3)]
    items, times = local.standin.history(2, 7)
    history = [
        Columns([2] * 7, items.tolist(), times.tolist()),  # all there
        Columns([2, 1, 0], [1000, 999, 1010], [T, T, T]),
        [1],
        Columns([1, 5, 5], [1020, 1030, 1030], [T, T, T]),
    ]
    assert appending.replay(rec, new, history, 4) == 5
    assert appending.replay(rec, new, history, 4) in (0, 1)  # user 1 is forgotten again
    rows = new.read([0, 1, 2, 5])[0]
    assert rows["events"].tolist() == [had[0] + 1, 1, had[2] + 1, 2]
    assert 1 in rows["items"][2]  # dense id of 1000
    new.close()


def test_digests_tell_kinds_of_ids_apart():
    assert columns(1).digest != columns("1").digest
    assert json.loads(json.dumps(columns(1).users)) == [1]
