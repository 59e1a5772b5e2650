"""What docs/tokens.md and the README say that tokens carry: figures and sentences of results/."""

import itertools

import pytest

from jaxrec.experiments import verdict
from tests.integration.quoted import README, ROOT, load, share, with_interval

PAGE = ROOT / "docs" / "tokens.md"


@pytest.mark.parametrize("backbone", ["hstu", "sasrec"])
def test_the_readme_quotes_the_probe(backbone):
    rows = load(f"probe/{backbone}/probe.json")["rows"]
    summary = [row for row in rows if row["part"] == "all returns"]
    assert len(summary) == 4
    for row in summary:
        cells = [
            backbone,
            row["name"],
            with_interval(row, "recall@10", 3),
            with_interval(row, "mrr", 3),
            with_interval(row, "mrr_of_full", 3),
            f"{row['flops_of_full']:.1%}",
            f"{row['state_bytes']:,}",
        ]
        assert f"| {' | '.join(cells)} |\n" in README.read_text()


def test_the_documents_quote_four_layers():
    rows = load("probe/hstu_4_layers/probe.json")["rows"]
    summary = {row["name"]: row for row in rows if row["part"] == "all returns"}
    page, readme = PAGE.read_text(), README.read_text()
    for name, row in summary.items():
        cells = ["hstu, 4 layers", name, with_interval(row, "recall@10", 3)]
        cells += [with_interval(row, "mrr", 3), with_interval(row, "mrr_of_full", 3)]
        cells += [f"{row['flops_of_full']:.1%}", f"{row['state_bytes']:,}"]
        assert f"| {' | '.join(cells)} |\n" in page
    row = summary["compressed"]
    assert f"finds {row['recall@10_of_full']:.3f} of what full" in page
    assert f"its MRR is {row['mrr_of_full']:.3f} of full" in page
    assert f"With four layers it is {row['mrr_of_full']:.2f}" in readme
    assert row["mrr_of_full_high"] < 1  # "and the interval does not"


def test_the_documents_quote_movielens_1m():
    rows = {row["name"]: row for row in load("experiments_ml1m/sasrec/gap.json")["rows"]}
    page = PAGE.read_text()
    shown = {"recent": "recent (newest 50)", "compressed": "compressed (200)", "full": "full (200)"}
    for name, row in rows.items():
        cells = [shown.get(name, name)]
        cells += [with_interval(row, metric, 4) for metric in ("recall@10", "ndcg@10", "mrr")]
        cells.append(f"{row['flops_of_full']:.1%}" if "flops_of_full" in row else "")
        assert f"| {' | '.join(cells)} |\n" in page
    recipe = (ROOT / "configs" / "ml1m.py").read_text()
    for name in shown:
        for metric in ("recall@10", "ndcg@10"):
            assert f"{rows[name][metric]:.4f}".removeprefix("0") in recipe


@pytest.mark.parametrize("backbone", ["sasrec", "hstu"])
def test_the_documents_quote_planted_returns(backbone):
    result = load(f"experiments_planted/{backbone}/gap.json")
    rows = {row["name"]: row for row in result["rows"]}
    page, readme = PAGE.read_text(), README.read_text()
    recipe = (ROOT / "configs" / "experiments_planted.py").read_text()
    for name, row in rows.items():
        cells = [name, *(with_interval(row, m, 4) for m in ("recall@10", "ndcg@10", "mrr"))]
        cells.append(f"{row['flops_of_full']:.1%}" if "flops_of_full" in row else "")
        assert f"| {' | '.join(cells)} |\n" in page
    shown = {"full": "full history of 127", "recent": "recent window of 31"}
    parts = {"": "all", ", returns": "returns", ", after 32": "returns after 32 to 47 events"}
    parts[", after 48"] = "returns after 48 events and more"
    for name in ("full", "compressed", "recent"):
        cells = [backbone, shown.get(name, name)]
        cells += [with_interval(rows[name + part], "ndcg@10", 4) for part in ("", ", returns")]
        cells.append(f"{rows[name]['flops_of_full']:.1%}")
        assert f"| {' | '.join(cells)} |\n" in readme
        level = f"{rows[name]['ndcg@10']:.4f}".removeprefix("0")
        assert f"{level} ({name})" in recipe.replace("\n", " ")
    for part, targets in parts.items():
        closed = [share(rows["compressed" + part], m) for m in ("recall@10", "ndcg@10", "mrr")]
        assert f"| {backbone} | {targets} | {' | '.join(closed)} |\n" in page
    for part in ("", ", returns"):
        assert with_interval(rows["compressed" + part], "ndcg@10_gap", 4) in page
    assert all(not row.get("still_rising") for row in rows.values())


def lines_of_returns(backbone):
    """Rows of docs/tokens.md from the gap of generated returns."""
    metrics = ("recall@10", "ndcg@10", "mrr")
    for row in load(f"experiments_returns/{backbone}_gap/gap.json")["rows"]:
        if not row["name"].endswith(", returns"):
            continue
        cells = [backbone, row["name"].removesuffix(", returns")]
        cells += [with_interval(row, metric, 3) for metric in metrics[:2]]
        closed = "ndcg@10_closed" in row
        cells += [share(row, metric) if closed else "" for metric in metrics]
        cells.append(f"{row['flops_of_full']:.1%}" if "flops_of_full" in row else "")
        yield "| " + " | ".join(cells) + " |"


@pytest.mark.parametrize("backbone", ["sasrec", "hstu", "llama"])
def test_the_documents_quote_generated_returns(backbone):
    page = PAGE.read_text()
    for line in lines_of_returns(backbone):
        assert f"{line}\n" in page
    rows = {r["name"]: r for r in load(f"experiments_returns/{backbone}_gap/gap.json")["rows"]}
    name = {"sasrec": "SASRec", "hstu": "HSTU", "llama": "Llama"}[backbone]
    kept = rows["compressed, returns"]
    for text in (page, README.read_text()):
        assert f"{share(kept, 'ndcg@10')} ({name})" in " ".join(text.split())
    assert f"{kept['targets']:,} returns" in page
    assert verdict.verdict(list(rows.values()), suffix=", returns").told
    assert not any(row.get("still_rising") for row in rows.values())  # "in every run"
    recipe = (ROOT / "configs" / "experiments_returns.py").read_text()
    assert f"{kept['ndcg@10_closed']:.2f}".removeprefix("0") + f" ({backbone})" in recipe
    assert 0.205 < kept["flops_of_full"] < 0.225  # "21 to 22 %"
    if backbone != "hstu":  # "no share of all targets"
        assert not verdict.verdict(list(rows.values())).told
    if backbone == "llama":
        return
    pooled = rows["mean-pooled, returns"]
    for text in (page, README.read_text()):
        assert f"{share(pooled, 'ndcg@10')} ({name})" in " ".join(text.split())
    assert kept["ndcg@10_low"] > pooled["ndcg@10_high"]  # "the intervals are apart"


def lines_of_lengths():
    """Rows of docs/tokens.md from the lengths of generated histories."""
    for row in load("experiments_returns/sasrec_experiments/length.json")["rows"]:
        cells = [row["name"], with_interval(row, "recall@10", 3), with_interval(row, "ndcg@10", 3)]
        cells.append(f"{row['flops_of_full']:.1%}")
        yield "| " + " | ".join(cells) + " |"


def test_the_documents_quote_lengths():
    page = PAGE.read_text()
    for line in lines_of_lengths():
        assert f"{line}\n" in page
    rows = load("experiments_returns/sasrec_experiments/length.json")["rows"]
    for series in ("compressed", "full"):  # "rises with every segment"
        levels = [row for row in rows if row["series"] == series]
        assert len(levels) == 3
        # "a history of 24 finds no more than the window"
        assert levels[0]["recall@10_low"] < rows[0]["recall@10_high"]
        for less, more in itertools.pairwise(levels):
            assert less["recall@10_high"] < more["recall@10_low"]
    served = {
        row["name"]: row
        for row in load("experiments_returns/sasrec_experiments/longer.json")["rows"]
    }
    assert f"{with_interval(served['served 8'], 'recall@10', 3)} with 8 segments" in page
    assert f"{with_interval(served['served 4'], 'recall@10', 3)} with the 4" in page


def test_the_documents_quote_the_bytes_of_states():
    result = load("experiments_returns/sasrec/bytes.json")
    rows = {row["name"]: row for row in result["rows"]}
    page, readme = PAGE.read_text(), README.read_text()

    def closed(row, metric):
        ends = (row[f"{metric}_closed{end}"] for end in ("", "_low", "_high"))
        return "{:.1%} [{:.1%}, {:.1%}]".format(*ends)

    for name, row in rows.items():
        if "tokens" not in row:
            continue
        cells = [name, f"{row['row_bytes']:,}"]
        cells += [closed(row, metric) for metric in ("recall@10", "ndcg@10", "mrr")]
        cells.append(f"{row['flops_of_full']:.1%}")
        assert f"| {' | '.join(cells)} |\n" in page
    assert f"{rows['full']['targets']:,} returns" in page
    small = rows["1 token, int8"]
    assert f"a user's row is then {small['row_bytes']} bytes" in page
    assert f"row of {small['row_bytes']} bytes, still closes {closed(small, 'ndcg@10')}" in readme
    assert small["row_bytes"] > rows["full"]["row_bytes"]  # "more than the raw ids"


def test_what_the_documents_say_of_planted_returns():
    """The sentences beside the tables."""
    sasrec, hstu = (
        {row["name"]: row for row in load(f"experiments_planted/{name}/gap.json")["rows"]}
        for name in ("sasrec", "hstu")
    )
    readme, page = README.read_text(), PAGE.read_text()
    for rows, name in ((sasrec, "SASRec"), (hstu, "HSTU")):
        assert f"{share(rows['compressed, returns'], 'ndcg@10')} ({name})" in readme
        for metric in ("ndcg@10", "recall@10"):  # "at least as well as full history does"
            assert rows["compressed, returns"][metric] >= rows["full, returns"][metric]
        assert not verdict.verdict(list(rows.values())).told  # "`gap` tells no share"
        # above the target by the whole interval, were full history at its best
        assert rows["compressed, returns"]["ndcg@10_closed_low"] > 0.9
    for mode in ("full", "compressed"):  # "level with SASRec", "a little below"
        assert 0.97 < hstu[mode]["ndcg@10"] / sasrec[mode]["ndcg@10"] < 1
    less = 1 - hstu["compressed"]["ndcg@10"] / sasrec["compressed"]["ndcg@10"]
    assert f"({less:.1%} less)" in page
    longer = load("experiments_planted/hstu_longer.json")
    ratio = longer["metrics"]["ndcg@10"]["ratio"]
    times = f"{ratio['mean']:.3f} [{ratio['low']:.3f}, {ratio['high']:.3f}] times as good as"
    assert times in " ".join(readme.split())
    assert times in " ".join(page.split())
    assert f"all {longer['users']:,} users" in page
    twice = load("experiments_planted/hstu_8000_steps.json")
    assert twice["users"] == longer["users"]
    ratio = twice["metrics"]["ndcg@10"]["ratio"]
    times = f"{ratio['mean']:.3f} [{ratio['low']:.3f}, {ratio['high']:.3f}] times as good as"
    assert times in " ".join(readme.split())
    assert times in " ".join(page.split())
    grown = twice["metrics"]["ndcg@10"]["b"]["mean"] / longer["metrics"]["ndcg@10"]["b"]["mean"]
    assert f"Compressed has gained {grown - 1:.1%}" in page
    for rows in (sasrec, hstu):  # "far more than the window tells"
        assert rows["compressed, returns"]["ndcg@10_low"] > rows["recent, returns"]["ndcg@10_high"]
        without = rows["compressed without its tokens"]
        assert without["ndcg@10"] < rows["recent"]["ndcg@10"]
