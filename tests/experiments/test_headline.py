"""Numbers to remember: which rows they come from, and nothing where there is none."""

import json
import pathlib

from jaxrec.experiments import headline
from tests.experiments import made_up


def test_tiles_are_of_the_compressed_model():
    made = headline.tiles({"rows": made_up.gap_rows(), "protocol": made_up.PROTOCOL})
    assert [number for number, _, _ in made] == ["12.5 %", "25.0 %", *["90.0 %"] * 3, "2,048 B"]
    assert made[2][1:] == (
        "of the gap closed by NDCG@10",
        "95 %: 88.0 to 92.0 %; the gap is 0.1000 [0.0980, 0.1020]; 10 users, 2 seeds",
    )
    assert "1,500 B vectors of the tokens" in made[-1][2]


def test_a_share_that_cannot_be_told_has_no_tile():
    rows = made_up.gap_rows()
    for row in rows:
        if row["name"] == "compressed":
            row["recall@10_gap_low"] = -0.01
    made = headline.tiles({"rows": rows, "protocol": made_up.PROTOCOL})
    closed = [what for _, what, _ in made if "closed" in what]
    assert closed == ["of the gap closed by NDCG@10", "of the gap closed by MRR"]


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


def test_the_documents_say_what_the_committed_benchmark_says():
    root = pathlib.Path(__file__).parents[2]
    bench = json.loads((root / "results" / "bench_cpu" / "report.json").read_text())
    readme = (root / "README.md").read_text()
    tiles = headline.bench_tiles(bench["rows"])
    assert len(tiles) == 3
    assert "\n".join(f"| {what} | {number} |" for number, what, _ in tiles) in readme
