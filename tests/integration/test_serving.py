"""The whole way through the command line: train, build (killed and gone on), append, recommend,
verify, delete, snapshot, restore.
"""

import contextlib
import io
import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import polars as pl
import pytest

from jaxrec.errors import StoreError
from jaxrec.serving import Catalog, command
from jaxrec.state_store.store import UserStateStore

USERS = 1500
RECIPE = """
from configs import quickstart

def get_config():
    config = quickstart.get_config()
    config.data.dataset = "synthetic"
    config.data.min_item_events = 1
    config.data.synthetic.users = {users}
    config.data.synthetic.items = 60
    config.data.synthetic.events = 30
    config.data.synthetic.gap = 10
    config.layout.segment_size, config.layout.max_segments, config.layout.tokens = 8, 3, 2
    config.model.width, config.model.layers, config.model.heads = 16, 2, 2
    config.loss.negatives = 32
    config.train.steps = config.train.eval_every = config.train.checkpoint_every = 3
    config.train.validation_users = 20
    config.eval.mode, config.eval.bootstrap = "popularity", 10
    return config
"""


def process(*arguments):
    """A command in a process of its own: its lines of output."""
    done = subprocess.run(
        [sys.executable, *map(str, arguments)],
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def serving(*arguments, input=""):
    """A subcommand in this process: (status, its lines of JSON, its messages)."""
    out, messages, before = io.StringIO(), io.StringIO(), sys.stdin
    sys.stdin = io.StringIO(input)
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(messages):
            status = command.run([str(argument) for argument in arguments])
    finally:
        sys.stdin = before
    return status, [json.loads(line) for line in out.getvalue().splitlines()], messages.getvalue()


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("serving")
    recipe = folder / "recipe.py"
    recipe.write_text(RECIPE.format(users=USERS))
    process("train.py", f"--config={recipe}", f"--workdir={folder / 'run'}")
    return folder / "run"


@pytest.fixture(scope="module")
def model(workdir):
    return f"--workdir={workdir}"


def users_of(url):
    """How many users the store has now; 0 while it is being made."""
    try:
        return sum(shard.users for shard in UserStateStore.open(url, None, mode="r").stat())
    except StoreError:
        return 0


@pytest.fixture(scope="module")
def store(workdir, model):
    """Built by a process that is killed on the way and by the same command again."""
    url = workdir / "states"
    arguments = ["build-states", model, f"--store={url}", "--num-shards=2", "--keep-seen=5"]
    killed = subprocess.Popen(
        [sys.executable, "-m", "jaxrec.serving", *arguments],
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
        stderr=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
    )
    while killed.poll() is None and not users_of(url):
        time.sleep(0.002)
    killed.send_signal(signal.SIGKILL)
    assert killed.wait() == -signal.SIGKILL
    written = users_of(url)
    assert 0 < written < USERS
    built = json.loads(process("-m", "jaxrec.serving", *arguments)[-1])
    assert built["already_built"] >= written
    assert built["users"] + built["already_built"] == USERS
    _, (again,), _ = serving(*arguments)
    assert again == {"users": 0, "already_built": USERS}
    return f"--store={url}"


def test_the_states_are_right(model, store):
    _, (result,), _ = serving("verify", model, store, "--sample=40")
    assert result["passed"]
    assert result["checked"] == 40
    assert result["difference"] <= 1e-5
    _, (stat,), _ = serving("stat", store)
    assert stat["users"] == USERS
    assert stat["encoding"] == "float32"
    assert len(stat["shards"]) == 2


def test_append_and_recommend(workdir, model, store, tmp_path):
    catalog = Catalog.load(workdir)
    users = np.load(next((workdir / "data").glob("synthetic-*/users.npy")))[:2].tolist()
    fresh = max(users) + 10**6
    item = int(catalog.vocabulary.ids[3])
    later = catalog.time_origin + 10**9
    frame = pl.DataFrame(
        {
            "user_id": [users[0], fresh, fresh, users[1]],
            "item_id": [item, item, item + 10**6, item],
            "timestamp": [later, later, later, 1],
        }
    )
    frame.write_parquet(tmp_path / "events.parquet")
    _, (done,), _ = serving("append", model, store, f"--events={tmp_path / 'events.parquet'}")
    assert done["events"] + done["late"] == 3
    assert done["unknown_items"] == 1
    assert done["users"] == 3
    again = serving("append", model, store, f"--events={tmp_path / 'events.parquet'}")[1][0]
    assert (again["events"], again["users"], again["already_applied"]) == (0, 0, 3)

    shard = UserStateStore.open(workdir / "states", None).shard_of([users[0], fresh, users[1]])
    frame.with_columns(timestamp=later + 1).write_csv(tmp_path / "more.csv")
    for number in range(2):  # two processes are given the same file
        flags = (f"--events={tmp_path / 'more.csv'}", f"--shards={number}")
        _, (part,), _ = serving("append", model, store, *flags)
        owned = {
            user
            for user, of in zip([users[0], fresh, users[1]], shard, strict=True)
            if of == number
        }
        assert part["users"] == len(owned)
        assert part["of_other_shards"] == sum(user not in owned for user in frame["user_id"])

    users_file = "\n".join(map(str, [users[0], fresh, fresh + 1]))
    _, lines, _ = serving("recommend", model, store, "--k=3", "--exclude-seen", input=users_file)
    assert [line["user"] for line in lines] == [users[0], fresh, fresh + 1]
    assert all(len(line["items"]) == len(line["scores"]) == 3 for line in lines)
    assert item not in lines[0]["items"] + lines[1]["items"]
    popular = catalog.vocabulary.ids[np.argsort(-catalog.counts[1:], kind="stable")[:3]]
    assert lines[2]["items"] == popular.tolist()

    some = catalog.vocabulary.ids[:4].tolist()
    (tmp_path / "some.txt").write_text("\n".join(map(str, some)))
    pl.DataFrame({"item_id": some[:1]}).write_csv(tmp_path / "not.csv")
    chosen = (f"--candidates={tmp_path / 'some.txt'}", f"--exclude={tmp_path / 'not.csv'}")
    _, (line, *_), _ = serving("recommend", model, store, *chosen, input=users_file)
    assert sorted(line["items"]) == sorted(some[1:])

    (tmp_path / "users.txt").write_text(users_file)
    serving(
        "recommend", model, store, f"--users={tmp_path / 'users.txt'}", "--k=3", "--exclude-seen",
        f"--output={tmp_path / 'lists.parquet'}",
    )  # fmt: skip
    table = pl.read_parquet(tmp_path / "lists.parquet")
    assert table["items"].to_list() == [line["items"] for line in lines]


def test_users_are_forgotten(model, store, tmp_path):
    users = tmp_path / "users.txt"
    users.write_text("999999999\n")
    _, (done,), _ = serving("delete", model, store, f"--users={users}")
    assert done == {"deleted": 0, "unknown": 1}
    _, lines, _ = serving("compact", store)
    assert lines[-1]["users"] >= USERS


def test_rebuilt_without_the_deleted(workdir, model, store, tmp_path):
    """The old store may be of any model; here it is of the same one."""
    users = np.load(next((workdir / "data").glob("synthetic-*/users.npy"))).tolist()
    old = tmp_path / "old"
    serving("build-states", model, f"--store={old}", "--num-shards=1", "--encoding=int8")
    _, (gone,), _ = serving("delete", model, f"--store={old}", input=f"{users[5]}\n" * 2)
    assert gone == {"deleted": 1, "unknown": 0}
    flags = ("rebuild", model, f"--from={old}", f"--store={tmp_path / 'new'}", "--encoding=float32")
    _, (built,), _ = serving(*flags)
    assert built == {"users": USERS - 1, "already_built": 0, "missing": 0, "shorter": 0}
    assert serving(*flags)[1][0]["already_built"] == USERS - 1
    _, (result,), _ = serving("verify", model, f"--store={tmp_path / 'new'}", "--sample=32")
    assert result["passed"]
    assert result["checked"] + result["missing"] == 32
    _, (stat,), _ = serving("stat", f"--store={tmp_path / 'new'}")
    assert (stat["users"], stat["encoding"], len(stat["shards"])) == (USERS - 1, "float32", 1)
    status, _, messages = serving("rebuild", model, f"--from={old}", f"--store={old}")
    assert status == 2
    assert "the same store as --from" in messages


def test_snapshot_and_restore(workdir, model, store, tmp_path):
    _, (saved,), _ = serving("snapshot", model, store)
    assert saved["users"] >= USERS
    other = tmp_path / "restored"
    _, (restored,), _ = serving(
        "restore", f"--snapshot={workdir / 'snapshots'}", f"--store={other}", "--num-shards=3"
    )
    assert restored["users"] == saved["users"]
    request = {"input": "1\n2\n3\n"}
    _, before, _ = serving("recommend", model, store, **request)
    from_snapshot = f"--workdir={restored['model']}"
    _, after, _ = serving("recommend", from_snapshot, f"--store={other}", **request)
    assert before == after


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("recommend", "--store=nowhere"), "nowhere"),
        (("append", "--events=no.parquet"), "--events='no.parquet': no such file"),
        (("recommend", "--output=lists.xml"), "--output=lists.xml: known endings are"),
        (("recommend", "--users=none.txt"), "--users=none.txt: no such file"),
        (("recommend", "--k=0"), "--k=0: a positive number of items is needed"),
        (("build-states", "--shards=a-b"), "--shards=a-b: numbers and ranges"),
        (("build-states", "--encoding=int8"), "encoding: store float32, given int8"),
        (("verify", "--sample=0"), "sample=0: at least 1 user"),
        (("recommend", "--users=README.md"), "README.md, line 1: '# jaxrec"),
        (("recommend", "--users=tests/golden/hstu_causal.npz"), "no text in UTF-8"),
        (("recommend", "--candidates=none.txt"), "--candidates=none.txt: no such file"),
    ],
)
def test_mistakes_are_one_line(model, store, arguments, message):
    command, *rest = arguments
    default = [] if any(flag.startswith("--store") for flag in rest) else [store]
    status, _, messages = serving(command, model, *default, *rest, input="1\n")
    assert status == 2
    assert message in messages
    assert "Traceback" not in messages
    assert len([line for line in messages.splitlines() if "error:" in line]) == 1


def test_help_and_a_run_that_is_not_there(tmp_path):
    text = "\n".join(process("-m", "jaxrec.serving", "--help"))
    assert all(name in text for name in ("build-states", "verify", "restore"))
    status, _, messages = serving("stat", f"--store={tmp_path / 'none'}")
    assert status == 2
    assert "there is no store here" in messages
    status, _, messages = serving(
        "recommend", f"--workdir={tmp_path}", f"--store={tmp_path}", input=""
    )
    assert status == 2
    assert "has no config.json" in messages
