"""Figures of docs/scale.md, docs/data.md and docs/python.md are those of results/."""

import json
import pathlib

import pytest

from tests.integration.quoted import with_interval

ROOT = pathlib.Path(__file__).parents[2]
PLANS = [
    ("HSTU", "v5e-4x4", "aot_{}v5e-4x4"),
    ("HSTU", "v5e-16x16", "aot_{}v5e-16x16"),
    ("HLLM", "v5e-4x4", "aot_{}hllm_v5e-4x4"),
    ("HLLM", "v5e-16x16", "aot_{}hllm_v5e-16x16"),
]


def record(name):
    return json.loads((ROOT / "results" / f"{name}.json").read_text())


def cell(row):
    """GiB per chip, ms of the roofline beside those of the layout's arithmetic, share of peak."""
    times = row["roofline"]
    step, compute = times["step_s"] * 1e3, times["compute_s"] * 1e3
    return f"{row['memory']['total'] / 2**30:.1f}; {step:.1f} / {compute:.1f}; {compute / step:.0%}"


def lines():
    for model, topology, pattern in PLANS:
        for when, infix in (("before", "before_"), ("now", "")):
            plan = record(pattern.format(infix))
            shape = ", ".join(str(size) for size in plan["mesh"].values())
            users = plan["settings"]["train.batch_size"]
            cells = [model, f"`{topology.replace('-', ':')}`", shape, str(users), when]
            cells += [cell(row) for row in plan["rows"]]
            yield "| " + " | ".join(cells) + " |"


def test_the_table_of_plans():
    text = (ROOT / "docs" / "scale.md").read_text()
    for line in lines():
        assert line in text, line


def test_the_network_of_a_step():
    """Megabytes that a chip of the large slice sends, before and now."""
    sent = []
    for infix in ("before_", ""):
        train = record(f"aot_{infix}v5e-16x16")["rows"][0]
        sent.append(sum(row["bytes"] for row in train["collectives"].values()) / 1e6)
    before, now = sent
    text = " ".join((ROOT / "docs" / "scale.md").read_text().split())
    assert f"{before:,.0f} MB of collectives a step before, {now:,.0f} MB now" in text


def test_what_the_recipes_say_they_need():
    """GiB of a chip in the docstrings of the recipes for pods."""
    for recipe, names in (
        ("pod_hstu", ["aot_v5e-16x16"]),
        ("pod_hllm", ["aot_hllm_v5e-16x16", "aot_hllm_v5e-4x4"]),
    ):
        text = " ".join((ROOT / "configs" / f"{recipe}.py").read_text().split())
        for name in names:
            need = record(name)["rows"][0]["memory"]["total"] / 2**30
            assert f" {need:.1f} " in text, (recipe, name)


def test_the_preparation_before_and_after():
    """Rows of docs/data.md, and that the prepared files are equal."""
    text = (ROOT / "docs" / "data.md").read_text()
    for events in ("10m", "100m"):
        contents = set()
        for name in (f"prepare_{events}_before", f"prepare_{events}"):
            row = record(name)["rows"][0]
            contents.add(row["content"])
            cells = (
                f"{row['seconds']:.0f} s | {row['cpu_s']:.1f} s | {row['peak_bytes'] / 1e9:.2f} GB"
            )
            assert f"(`results/{name}.json`) | {cells} |" in text, (name, cells)
        assert len(contents) == 1


def test_the_front_door():
    """Rows of docs/python.md."""
    text = (ROOT / "docs" / "python.md").read_text()
    starts = record("front_door")["starts"]
    assert [start["statements"] for start in starts] == [3] * 6
    for start in starts:
        seconds = start["seconds"]
        times = (seconds[name] for name in ("fit", "first recommendation", "evaluation"))
        cells = [start["events"], start["start"], *(f"{time:.0f}" for time in times)]
        assert f"| {' | '.join(cells)} |" in text, start


def test_positions_per_event_and_the_speed_without_padding():
    """Rows of docs/scale.md."""
    text = (ROOT / "docs" / "scale.md").read_text()
    rows = record("padding")["rows"]
    names = {
        "configs/completejourney_hstu.py": "The Complete Journey, 4 x (100 + 4) + 100",
        "configs/movielens_quality.py:latest-small": "MovieLens latest-small, full history of 200",
        "configs/table.py": "MovieLens latest-small, 4 x (50 + 4) + 50",
    }
    for config, name in names.items():
        cells = []
        for row in rows:
            if row["config"].startswith(config):
                sizes = f" ({row['sizes']} sizes)" if row.get("length_buckets", 1) > 1 else ""
                cells.append(f"{row['positions_per_event']:.2f}{sizes}")
        cells += [""] * (4 - len(cells))  # full history has no states
        line = f"| {name} | {' | '.join(cells)} |".replace("|  |", "| |")
        assert line in text, line
        whole, *shorter = (
            row["events_per_s"]
            for row in rows
            if row["config"].startswith(config) and row["work"] == "training"
        )
        cells = [f"{whole:,.0f}", *(f"{speed:,.0f} ({speed / whole:.2f})" for speed in shorter)]
        assert f"| {name} | {' | '.join(cells)} |\n" in text


def test_the_speed_of_training():
    """Rows of docs/scale.md."""
    text = (ROOT / "docs" / "scale.md").read_text()
    result = record("training_speed")
    assert result["same_losses"]
    names = {"here": "now", "here, small pages": "now, without huge pages"}
    for row in result["rows"]:
        ms = [f"{row[key] * 1e3:.0f}" for key in ("median_s", "min_s", "max_s")]
        faster = "{median:.2f} [{low:.2f}, {high:.2f}]".format(**row["here_is_times_faster"])
        cells = [names.get(row["name"], f"`{row['name']}`"), "{} [{}, {}]".format(*ms), faster]
        assert f"| {' | '.join(cells)} |" in text, row["name"]


@pytest.mark.parametrize("backbone", ["hstu", "sasrec"])
def test_what_bfloat16_costs(backbone):
    result = record(f"experiments_returns/{backbone}_bfloat16/ablations")
    wide, narrow = result["rows"]
    cells = [backbone, *(with_interval(row, "ndcg@10", 4) for row in (wide, narrow))]
    cells.append(with_interval(narrow, "ndcg_of_base", 3))
    page = (ROOT / "docs" / "scale.md").read_text()
    assert f"| {' | '.join(cells)} |\n" in page
    # "no loss is seen", "two seeds"
    assert narrow["ndcg_of_base_high"] > 1
    assert narrow["ndcg_of_base"] > 0.99
    assert [len(row["ndcg@10_seeds"]) for row in (wide, narrow)] == [2, 2]
    assert narrow["changed"] == "model.dtype=bfloat16"
    sizes = [result["config"]["model"][key] for key in ("width", "layers")]
    assert "(width {}, two\nlayers)".format(*sizes) in page
    assert sizes[1] == 2


def test_what_trained_models_cost():
    """Rows of docs/benchmark.md."""
    text = (ROOT / "docs" / "benchmark.md").read_text()
    names = {
        "completejourney": "The Complete Journey, 500 events",
        "ml_latest_small": "MovieLens latest-small, 375 events",
    }
    for folder, name in names.items():
        rows = {
            row["part"]: row
            for row in record(f"savings/{folder}/cost")["rows"]
            if row["name"] == "compressed"
        }
        cells = [name, f"{rows['request of 16 users']['flops_of_full']:.1%}"]
        for part in ("request of 1 user", "request of 16 users", "training step"):
            share = (rows[part][f"ms_of_full{end}"] for end in ("", "_low", "_high"))
            cells.append("{:.1%} [{:.1%}, {:.1%}]".format(*share))
        assert f"| {' | '.join(cells)} |" in text, name
        assert rows["request of 16 users"]["ms_of_full"] <= 1.1 * float(
            rows["request of 16 users"]["flops_of_full"]
        )
