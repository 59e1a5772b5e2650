"""What the commands do, on a run that they made."""

import csv
import json
import pathlib

import numpy as np
import pytest

from jaxrec.cli.main import run
from jaxrec.config import Config
from jaxrec.errors import ConfigError
from jaxrec.evaluation import comparison, rank_file
from jaxrec.evaluation.rank_file import RankFile
from jaxrec.evaluation.ranks import Ranks


def test_a_run_is_evaluated_by_its_own_configuration(trained, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = (trained / "config.json").read_text()
    more = ["--config.eval.mode=compressed,masked,popularity", "--output=figures/own.json"]
    assert run(["evaluate", f"--workdir={trained}", *more]) == 0
    out = capsys.readouterr().out
    result = json.loads((tmp_path / "figures" / "own.json").read_text())
    assert [row["name"] for row in result["rows"]] == ["compressed", "masked", "popularity"]
    whole = json.loads((trained / "results.json").read_text())["rows"]
    assert result["rows"][0] == whole[0]
    assert result["command"].startswith("jaxrec evaluate --workdir=")
    assert out.startswith("compressed: NDCG@10 0.")
    assert "\nmasked " not in out
    assert (trained / "config.json").read_text() == before

    assert run(["report", "--verbose", "figures/own.json"]) == 0
    assert "\nmasked " in capsys.readouterr().out
    assert run(["report", str(trained), "--markdown"]) == 0
    assert "\n| masked |" in capsys.readouterr().out

    # rows of one run are compared as runs are
    capsys.readouterr()
    assert run(["compare", str(trained), str(trained), "--rows=compressed,popularity"]) == 0
    first, _, *table = capsys.readouterr().out.splitlines()
    assert "compressed)" in first
    assert table[0].startswith("A: ")
    assert [line.split()[0] for line in table[-3:]] == ["ndcg@10", "recall@10", "mrr"]
    assert run(["compare", str(trained), str(trained), "--output=same.json"]) == 0
    kept = json.loads((tmp_path / "same.json").read_text())
    assert kept["metrics"]["mrr"]["difference"] == {"mean": 0.0, "low": 0.0, "high": 0.0}
    assert kept["verdict"].startswith("no difference can be told between ")


def test_recommendations_of_all_users_as_csv_with_titles(trained, store, tmp_path, capsys):
    users = np.load(next((trained / "data").glob("synthetic-*/users.npy"))).tolist()
    item = int(np.load(trained / "catalog.npz")["ids"][0])
    (tmp_path / "items.csv").write_text(f'item_id,title\n{item},"first, of all"\n')
    argv = [f"--workdir={trained}", f"--states={store}", "--all-users", "--k=60"]
    titles = f"--titles={tmp_path / 'items.csv'}:title"
    assert run(["recommend", *argv, titles, f"--output={tmp_path / 'lists.csv'}"]) == 0
    assert "recommended items have no title" in capsys.readouterr().err
    with (tmp_path / "lists.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert sorted({int(row["user"]) for row in rows}) == sorted(users)
    first = [row for row in rows if row["user"] == rows[0]["user"]]
    assert [int(row["rank"]) for row in first] == list(range(1, len(first) + 1))
    scores = [float(row["score"]) for row in first]
    assert scores == sorted(scores, reverse=True)
    assert {row["title"] for row in rows if int(row["item"]) == item} == {"first, of all"}
    assert {row["title"] for row in rows if int(row["item"]) != item} == {""}


def stored(ranks, **facts):
    users = np.repeat(np.arange(len(ranks) // 2), 2)
    positions = np.tile([5, 6], len(ranks) // 2)
    made = Ranks(users, positions, positions, np.asarray(ranks), None)
    known = {"data.dataset": "table", "eval.split": "test", "candidates": 100, **facts}
    return RankFile(known, {"compressed": made, "popularity": made})


def test_the_better_run_is_named():
    rng = np.random.default_rng(0)
    worse = rng.integers(0, 12, 400)
    better = np.maximum(worse - rng.integers(0, 3, 400), 0)
    a, b = comparison.side("a", stored(better)), comparison.side("b", stored(worse))
    value = comparison.compare(a, b, 200)
    assert (value.users, value.targets) == (200, 400)
    said = comparison.verdict(("a", "b"), value.metrics)
    assert said.startswith("a is better than b by NDCG@10: 1.")
    other = comparison.verdict(("b", "a"), comparison.compare(b, a, 200).metrics)
    assert other == said
    # unpaired, the same difference is lost in what differs between users
    mixed = comparison.compare(a, comparison.side("b", stored(np.roll(better, 2))), 200)
    assert comparison.verdict(("a", "b"), mixed.metrics).startswith("no difference can be told")
    nothing = comparison.side("zero", stored(np.full(400, 50)))
    said = comparison.verdict(("a", "zero"), comparison.compare(a, nothing, 200).metrics)
    assert said.startswith("a is better than zero by NDCG@10: +0.")


@pytest.mark.parametrize(
    ("other", "words"),
    [
        (stored([1] * 8, candidates=99), r"they differ in candidates=100 and 99\. Evaluate both"),
        (stored([1] * 8, **{"eval.split": "validation"}), r"eval\.split='test' and 'validation'"),
        (stored([1] * 10), r"they ranked other targets \(8 and 10\)"),
    ],
)
def test_other_targets_are_not_compared(other, words):
    a, b = comparison.side("a", stored([1] * 8)), comparison.side("b", other)
    with pytest.raises(ConfigError, match=rf"a and b cannot be compared, .*{words}"):
        comparison.compare(a, b, 100)


def test_ranks_come_back_sorted(tmp_path):
    value = stored([4, 3, 2, 1])
    shuffled = {
        name: Ranks(*(column[::-1] for column in row[:4]), None)
        for name, row in value.ranks.items()
    }
    facts = rank_file.facts(Config(), {"data": "1"}, 100)
    rank_file.save(tmp_path / rank_file.NAME, shuffled, facts)
    found = rank_file.load(pathlib.Path(tmp_path))
    assert found.facts == facts
    for name, row in value.ranks.items():
        for here, there in zip(row[:4], found.ranks[name][:4], strict=True):
            np.testing.assert_array_equal(here, there)
