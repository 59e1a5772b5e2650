"""Numbers to remember: which rows they come from, and nothing where there is none."""

import json
import pathlib

import pytest

from jaxrec.experiments import headline
from tests.experiments import made_up


def table(rows):
    return {"rows": rows, "protocol": made_up.PROTOCOL}


def test_the_longest_history_is_the_headline():
    result = headline.from_table(table(made_up.length_rows()))
    assert (result.history, result.compute, result.users, result.seeds) == (24, 3 / 24, 10, 2)
    assert result.quality["Recall@10"] == pytest.approx((0.9625, 0.9325, 0.9825))
    short = [row for row in made_up.length_rows() if "24" not in row["name"]]
    assert headline.from_table(table(short)).history == 12
    assert headline.from_table(table([row for row in short if row["series"] == "full"])) is None


def row(method="compressed", **changes):
    made = {"method": method, "history": 20, "segments": 5, "tokens": 4, "batch": 1}
    made |= {"time_ratio": 0.2, "time_ratio_quartiles": [0.1, 0.3], "flops_ratio_analytic": 0.15}
    return made | changes


def test_the_benchmarks_tiles_are_those_of_the_papers_layout():
    full = row("full", tokens=0, train_rounds_ms=[10.0, 20.0, 30.0])
    compressed = row(train_rounds_ms=[5.0, 8.0, 18.0])
    others = [row(tokens=1), row(batch=16), row("compressed_int8"), row(history=10)]
    result = headline.bench_tiles([full, *others, compressed])
    assert [number for number, _, _ in result] == ["15.0 %", "20.0 %", "50.0 %"]
    assert result[1][2].endswith("quartiles 10.0 to 30.0 %")
    assert result[2][2].endswith("quartiles 45.0 to 55.0 %")
    assert len(headline.bench_tiles([full, row()])) == 2  # no training step measured
    assert headline.bench_tiles([full, row(segments=4)]) == []
    assert headline.bench_tiles([row(time_ratio=None)]) == []


def test_the_documents_say_what_the_committed_tables_say():
    root = pathlib.Path(__file__).parents[2]
    length, bench = (
        json.loads((root / "results" / name).read_text())
        for name in ("experiments/length.json", "bench_cpu/report.json")
    )
    experiments = " ".join((root / "docs" / "experiments.md").read_text().split())
    assert f"**{headline.sentence(headline.from_table(length))}**" in experiments
    readme = (root / "README.md").read_text()
    tiles = headline.bench_tiles(bench["rows"])
    assert len(tiles) == 3
    assert "\n".join(f"| {what} | {number} |" for number, what, _ in tiles) in readme
