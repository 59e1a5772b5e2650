"""A flipped bit in any file of a run, a store, a snapshot or prepared data: harmless, or named.

The ordinary run samples; `-m slow` flips 600 bits and writes the counts to the file that
`$JAXREC_ATTACKS` names (`results/attacks.json`).
"""

import random
import shutil

import numpy as np
import pytest

from jaxrec import config as config_lib
from jaxrec.config import DataConfig
from jaxrec.data import prepare
from jaxrec.data.preparation import verify
from jaxrec.errors import JaxrecError
from jaxrec.runtime import checkpoint, workdir
from jaxrec.serving import Recommender, snapshot
from tests.attacks import record
from tests.serving import standin

USERS = list(range(12))
OWN = ("writer.lock", ".lock")  # their content means nothing


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A folder with a run, a store of its users' states, a snapshot and prepared data."""
    root = tmp_path_factory.mktemp("whole")
    config = standin.config(layers=1, token_input="pooled")
    rec = Recommender(config, standin.params_of(config), standin.catalog())
    run = root / "run"
    workdir.claim(run, config, {"data": "x", "vocabulary": rec.catalog.vocabulary.digest})
    rec.catalog.save(run)
    checkpoint.save(run / workdir.CHECKPOINTS, 3, {"params": rec.params}, {}, best=3)
    rec = Recommender.load(run)
    with rec.create_store(root / "store", num_shards=2) as store:
        for user in USERS:
            items, times = standin.history(user, 5 + user)
            rec.append(store, [user] * len(items), items, times)
        snapshot.save(rec, store, root / "snapshots")
    rows = "".join(f"{i % 3},{i % 5},{i + 5}\n" for i in range(30))
    (root / "events.csv").write_text("user_id,item_id,timestamp\n" + rows)
    prepare(table(root), root / "prepared")
    return root, answers(root)


def table(root):
    path = str(root / "events.csv")
    return DataConfig(path=path, dataset="table", min_item_events=1, min_user_events=1)


def answers_of_run(root):
    rec = Recommender.load(root / "run")
    return config_lib.to_json(rec.config), rec.binding("float32"), rec.catalog.content_digest


def answers_of_store(root):
    from jaxrec.state_store.store import UserStateStore

    with UserStateStore.open(root / "store", None) as store:
        columns, known = store.read(USERS)
        return known.tolist(), {n: c.tobytes() for n, c in columns.items()}, len(store.stat())


def answers_of_snapshot(root):
    opened = snapshot.Snapshot(root / "snapshots")
    opened.load()
    parts = [(ids, {n: c.tobytes() for n, c in x.items()}) for ids, x in opened.iterate()]
    return opened.step, opened.users, parts


def answers_of_data(root):
    data = prepare(table(root), root / "prepared")
    verify(data)
    whole = data.histories
    return data.digest, whole.items.tobytes(), whole.times.tobytes(), data.users.tolist()


ANSWERS = {
    "run": answers_of_run,
    "store": answers_of_store,
    "snapshots": answers_of_snapshot,
    "prepared": answers_of_data,
}


def answers(root):
    return {kind: call(root) for kind, call in ANSWERS.items()}


def flip(root, expected, kind, count, seed):
    """How many of `count` flips in files of a kind are harmless, named, silent; all are undone."""
    rng, counts, silent = random.Random(seed), {"harmless": 0, "named": 0, "silent": 0}, []
    kept = root.with_name(f"{root.name}-{kind}")
    shutil.copytree(root / kind, kept)
    files = [f for f in sorted((root / kind).rglob("*")) if f.is_file() and f.name not in OWN]
    files = [f for f in files if f.stat().st_size]
    order = rng.sample(files, len(files))
    for number in range(count):
        file = order[number % len(order)]
        content = bytearray(file.read_bytes())
        place, bit = rng.randrange(len(content)), rng.randrange(8)
        content[place] ^= 1 << bit
        file.write_bytes(content)
        try:
            found = ANSWERS[kind](root)
        except JaxrecError:
            verdict = "named"
        else:
            verdict = "harmless" if found == expected[kind] else "silent"
            if verdict == "silent":
                silent.append(f"{file.relative_to(root)}, byte {place}, bit {bit}")
        counts[verdict] += 1
        shutil.rmtree(root / kind)  # what a reader moved aside or made is gone too
        shutil.copytree(kept, root / kind)
    shutil.rmtree(kept)
    assert not silent
    return counts


@pytest.mark.parametrize("kind", ANSWERS)
def test_flipped_bits_are_harmless_or_named(whole, kind):
    root, expected = whole
    counts = flip(root, expected, kind, 6 if kind in ("run", "snapshots") else 14, 7)
    assert counts["named"] > 0


@pytest.mark.slow
def test_600_flipped_bits(whole):
    root, expected = whole
    rows = {kind: flip(root, expected, kind, 150, 11) for kind in ANSWERS}
    assert all(np.sum(list(counts.values())) == 150 for counts in rows.values())
    record.save("flips", rows)
