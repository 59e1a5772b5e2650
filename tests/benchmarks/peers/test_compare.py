"""Cells side by side."""

import json
import pathlib
import shutil

import numpy as np
import pytest

from benchmarks.peers import compare, exchange
from jaxrec.errors import WorkdirError
from jaxrec.evaluation.ranks import Ranks
from tests.benchmarks.peers import standin

DATA = "ml-100k"
ROOT = pathlib.Path(__file__).parents[3]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("peers")
    events = standin.events(users=30, items=60)
    exchange.save_events(folder / DATA / exchange.EVENTS, events)
    for seed in (0, 1):
        quick = standin.curve((2, 0.1), (4, 0.5))
        late = standin.curve((5, 0.1 + 0.2 * seed), (20, 0.4))
        standin.cell(folder, DATA, "ours", seed, 0.5, quick, full_history_flops=200)
        standin.cell(folder, DATA, "rectools-hstu", seed, 0.1, late)
    return folder


def test_rows_carry_quality_time_and_cost(runs):
    result = compare.compare(runs, DATA, [0, 1])
    rows = {row["name"]: row for row in result["rows"]}
    ours, peer = rows["ours"], rows["rectools-hstu"]
    assert ours["kind"] == "ours"
    assert peer["kind"] == "peer"
    assert rows["popularity"]["kind"] == "rule"
    assert ours["rank"]["ndcg@10"]["mean"] > peer["rank"]["ndcg@10"]["mean"]
    # seen items are no candidates: no rank is worse
    assert peer["rank_filtered"]["recall@10"]["mean"] >= peer["rank"]["recall@10"]["mean"]
    assert ours["request_share"] == 0.25
    assert peer["request_share"] is None
    assert result["best_peer"] == "rectools-hstu"
    assert ours["seconds_to_best_peer"] == 4
    assert peer["seconds_to_best_peer"] == 20
    assert "frequency-all" in rows
    assert "rank_filtered" not in rows["frequency-all"]
    assert result["protocol"]["targets"] == 60


def test_comparisons_are_paired(runs):
    pairs = compare.compare(runs, DATA, [0, 1])["comparisons"]
    value = pairs["rank"]["ours / rectools-hstu"]["ndcg@10"]
    assert value["ratio"]["low"] > 1
    assert value["difference"]["low"] > 0
    assert "ours / frequency-all" in pairs["rank"]
    assert "ours / frequency-all" not in pairs["rank_filtered"]


def test_a_missing_cell_is_named(runs):
    with pytest.raises(WorkdirError, match="seed2"):
        compare.compare(runs, DATA, [0, 2])


def test_without_seen_items_repeats_are_no_targets():
    events = standin.events()
    user = 0
    history = events.history(user)
    repeated = next(at for at in range(1, len(history)) if history[at] in history[:at])
    places = np.asarray([0, repeated])
    ranks = Ranks(np.zeros(2, int), places, history[places], np.asarray([3, 4]), None)
    assert compare.counted(ranks, "rank", events) is ranks
    left = compare.counted(ranks, "rank_filtered", events)
    assert (left.position.tolist(), left.rank.tolist()) == ([0], [3])


def test_seeds_are_those_that_every_row_has(runs, tmp_path):
    folder = tmp_path / "some"
    shutil.copytree(runs, folder)
    assert compare.compare(folder, DATA)["protocol"]["seeds"] == [0, 1]
    shutil.rmtree(exchange.cell_folder(folder, DATA, "ours", 0))
    assert compare.compare(folder, DATA)["protocol"]["seeds"] == [1]
    shutil.rmtree(exchange.cell_folder(folder, DATA, "rectools-hstu", 1))
    with pytest.raises(WorkdirError, match="no seed of which every row is finished"):
        compare.compare(folder, DATA)


def test_cells_of_other_events_are_refused(runs, tmp_path):
    events = standin.events(users=30, items=60)
    exchange.save_events(tmp_path / DATA / exchange.EVENTS, events)
    standin.cell(tmp_path, DATA, "ours", 0, 0.5, standin.curve((1, 0.1)))
    exchange.save_events(tmp_path / DATA / exchange.EVENTS, events._replace(digest="d2"))
    with pytest.raises(WorkdirError, match="other events"):
        compare.compare(tmp_path, DATA, [0])


def test_quality_is_reached_by_the_mean_of_the_best_so_far():
    curves = [standin.curve((1, 0.2), (3, 0.6), (5, 0.1)), standin.curve((2, 0.4))]
    assert compare.reached(curves, 0.3) == 2
    assert compare.reached(curves, 0.5) == 3
    assert compare.reached(curves, 0.51) is None
    assert compare.final(curves) == pytest.approx(0.5)


def test_the_table_has_every_row(runs, capsys, monkeypatch, tmp_path):
    output = tmp_path / "out" / "quality.json"
    line = ["compare", f"--runs={runs}", "--data", DATA, "--seeds=0,1", f"--output={output}"]
    monkeypatch.setattr("sys.argv", line)
    compare.main()
    text = capsys.readouterr().out
    for name in ("ours", "rectools-hstu", "popularity", "frequency-all"):
        assert f"| {name} |" in text
    result = json.loads(output.read_text())
    assert str(runs) not in result["command"]
    monkeypatch.setattr("sys.argv", ["compare", f"--show={output}"])
    compare.main()
    assert capsys.readouterr().out == text


def test_rules_rank_what_models_rank():
    events = standin.events()
    ranks = compare.rules(events)["popularity"]["rank"]
    counts = np.bincount(exchange.training(events)[1], minlength=events.num_items + 1)
    item = int(ranks.item[0])
    assert ranks.rank[0] == (counts[1:] >= counts[item]).sum() - 1


def test_a_ratio_to_nothing_is_said():
    """A rule that never finds a target: its ratio is no number, null in the file."""
    line = {"ratio": {"mean": None, "low": None, "high": None}}
    one = {"data": "d", "best_peer": None, "rows": [], "protocol": {}}
    pairs = {"rank": {"ours / copy-last": {"ndcg@10": line}}}
    assert "- ours / copy-last: ndcg@10 undefined" in compare.markdown(
        {"command": "", "data": [one | {"comparisons": pairs}]}
    )


def test_the_committed_page_is_the_committed_result():
    result = json.loads((ROOT / "results" / "quality.json").read_text())
    page = (ROOT / "benchmarks" / "peers" / "RESULTS.md").read_text()
    assert page == compare.markdown(result) + "\n"
