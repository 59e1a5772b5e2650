"""What docs/tokens.md and the README say that tokens carry: figures and sentences of results/."""

import pytest

from jaxrec.experiments import verdict
from tests.integration.quoted import README, ROOT, load, share, with_interval

PAGE = ROOT / "docs" / "tokens.md"


@pytest.mark.parametrize("backbone", ["hstu", "sasrec"])
def test_the_documents_quote_the_probe(backbone):
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
        assert f"| {' | '.join(cells)} |\n" in PAGE.read_text()


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
    two = {r["name"]: r for r in load("probe/hstu/probe.json")["rows"]}
    words = " ".join(readme.split())
    assert f"{two['compressed']['mrr_of_full']:.2f} of full history's MRR with two layers" in words
    assert f"and {row['mrr_of_full']:.2f} with four" in words
    assert row["mrr_of_full_high"] < 1


def test_the_documents_quote_tokens_of_parts_on_the_probe():
    parts, pooled = (
        {row["name"]: row for row in load(f"probe/{name}/probe.json")["rows"]}
        for name in ("hstu_parts", "hstu")
    )
    page = PAGE.read_text()
    for name, shown in (
        ("compressed", "compressed, tokens of parts"),
        ("compressed, not pooled", "compressed, tokens that begin alike"),
    ):
        row = parts[name]
        cells = ["hstu", shown, with_interval(row, "recall@10", 3), with_interval(row, "mrr", 3)]
        cells += [with_interval(row, "mrr_of_full", 3), f"{row['flops_of_full']:.1%}"]
        cells.append(f"{row['state_bytes']:,}")
        assert f"| {' | '.join(cells)} |\n" in page
    shares = [rows["compressed"]["mrr_of_full"] for rows in (parts, pooled)]
    sentence = "compressed has an MRR of {:.3f} of full history's, pooled tokens {:.3f}"
    assert sentence.format(*shares) in " ".join(page.split())
    # "the same full history", "the intervals overlap", "differ by more"
    assert parts["full history"]["mrr_seeds"] == pooled["full history"]["mrr_seeds"]
    assert parts["compressed"]["mrr_of_full_high"] > pooled["compressed"]["mrr_of_full_low"]
    for rows in (parts, pooled):
        seeds = rows["compressed"]["mrr_seeds"]
        full = rows["full history"]["mrr"]
        assert (max(seeds) - min(seeds)) / full > shares[1] - shares[0]


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
    words, kept = " ".join(page.split()), rows["compressed"]
    assert f"{with_interval(kept, 'ndcg@10_gap', 4)} by NDCG@10" in words
    assert f"{with_interval(kept, 'recall@10_gap', 4)} by Recall@10" in words
    assert "History adds little here, if anything" in verdict.verdict(list(rows.values())).title
    assert not any(row.get("still_rising") for row in rows.values())  # "in every run"
    readme, full = " ".join(README.read_text().split()), rows["full"]
    published = {"recall@10": 0.3164, "ndcg@10": 0.1857}
    for metric, best in published.items():
        assert f"{best:.4f}" in words
        assert f"{best:.4f}" in readme
        assert with_interval(full, metric, 4) in readme
        assert min(full[f"{metric}_low"], rows["recent"][f"{metric}_low"]) > best
    for name in ("recent", "full"):  # "level with both", "loses next to nothing"
        for metric in published:
            assert kept[f"{metric}_low"] < rows[name][metric] < kept[f"{metric}_high"]
    blind = rows["compressed without its tokens"]
    assert kept["ndcg@10_low"] < blind["ndcg@10"] < kept["ndcg@10_high"]
    protocol = load("experiments_ml1m/sasrec/gap.json")["protocol"]
    assert protocol["training"].startswith("14400 steps of 16, ")


def test_the_documents_quote_what_tokens_add_to_counters():
    result = load("experiments_counters/gap.json")
    rows = {row["name"]: row for row in result["rows"]}
    page, readme = PAGE.read_text(), " ".join(README.read_text().split())
    recipe = (ROOT / "configs" / "experiments_counters.py").read_text()
    for name, row in rows.items():
        cells = [name, *(with_interval(row, m, 4) for m in ("recall@10", "ndcg@10", "mrr"))]
        cells.append(f"{row['flops_of_full']:.1%}" if "flops_of_full" in row else "")
        assert f"| {' | '.join(cells)} |\n" in page
    words = " ".join(page.split())
    kept, pooled = rows["compressed + counters"], rows["mean-pooled + counters"]
    both = [with_interval(row, "ndcg@10", 4) for row in (pooled, kept)]
    assert f"{both[1]} against {both[0]}" in words
    assert f"{both[0]} against {both[1]}" in readme
    for row in (kept, pooled):
        assert f"{row['ndcg@10']:.4f}".removeprefix("0") in recipe
        # "both are above counters alone, and level with full history"
        assert row["ndcg@10_low"] > rows["counters alone"]["ndcg@10_high"]
        assert row["ndcg@10_low"] < rows["full + counters"]["ndcg@10"] < row["ndcg@10_high"]
    assert rows["recent + counters"]["ndcg@10_high"] < rows["counters alone"]["ndcg@10_low"]
    assert with_interval(rows["compressed"], "ndcg@10_gap", 4) in page
    for name in ("recent", "compressed", "full", "mean-pooled"):
        assert rows[name]["ndcg@10_high"] < rows["personal frequency"]["ndcg@10_low"]
    assert "level with mean-pooled + counters" in result["reading"]
    assert len(kept["ndcg@10_seeds"]) == 3
    assert f"{kept['users']:,} households" in page


@pytest.mark.parametrize("backbone", ["sasrec", "hstu", "llama", "hllm"])
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


def test_the_documents_quote_what_a_trained_model_is_worth_at_the_start():
    rows = load("experiments_planted/llama_init_from/ablations.json")["rows"]
    page = PAGE.read_text()
    for row in rows:
        cells = [row["name"], *(with_interval(row, m, 4) for m in ("recall@10", "ndcg@10"))]
        cells.append(with_interval(row, "ndcg_of_base", 3))
        assert f"| {' | '.join(cells)} |\n" in page
    assert len(rows) == 2
    assert rows[1]["ndcg_of_base_high"] < 1  # "most of it"


def test_the_documents_say_that_it_is_the_parts():
    """Pooled tokens, another seed and as many means, beside tokens of parts."""
    hstu, hstu_pooled, other, other_pooled, small = (
        {row["name"]: row for row in load(f"experiments_planted/{name}/gap.json")["rows"]}
        for name in ("hstu", "hstu_pooled", "llama_seed_1", "llama_pooled_seed_1", "llama_pooled")
    )
    readme, page = (" ".join(path.read_text().split()) for path in (README, PAGE))
    parts, name = ("", ", returns"), "compressed, returns"

    def closed(rows, row="compressed"):
        return [share(rows[row + part], "ndcg@10") for part in parts]

    levels = [with_interval(rows[name], "ndcg@10", 4) for rows in (hstu_pooled, hstu)]
    sentence = "an NDCG@10 of {} on the returns, and has {} with tokens of parts"
    assert sentence.format(*levels) in page
    assert hstu_pooled[name]["ndcg@10_high"] < hstu[name]["ndcg@10_low"]
    sentence = "tokens closed {} of the gap of all targets and {} of that of the returns"
    assert sentence.format(*closed(hstu_pooled)) in page
    levels = [rows["full, returns"]["ndcg@10"] for rows in (hstu_pooled, hstu)]
    assert "had {:.4f} on the returns then and {:.4f} now".format(*levels) in page
    assert "Llama's tokens close {} and {}".format(*closed(other)) in page
    assert "known: they close {} and {}".format(*closed(other, "mean-pooled-parts")) in page
    assert (
        "With that seed](../results/experiments_planted/llama_pooled_seed_1/gap.md) it is" in page
    )
    assert "it is {} and {}".format(*closed(other_pooled)) in page
    assert "it was {} and {} with the first seed".format(*closed(small)) in page
    # "not the scale at the start"
    assert other_pooled[name]["ndcg@10_closed_low"] < small[name]["ndcg@10_closed"]
    assert other_pooled[name]["ndcg@10_closed_high"] > small[name]["ndcg@10_closed"]
    assert other_pooled[name]["ndcg@10_closed_high"] < other[name]["ndcg@10_closed_low"]
    assert f"(with another seed {closed(other)[1]})" in readme
    assert f"(with another seed {closed(other)[0]})" in readme
    means = closed(other, "mean-pooled-parts")
    assert f"in place of Llama's tokens, closes {means[1]} and {means[0]}" in readme
    assert all(not row.get("still_rising") for row in (*hstu.values(), *other.values()))


def test_what_the_documents_say_of_planted_returns():
    """The sentences beside the tables."""
    sasrec, hstu, llama = (
        {row["name"]: row for row in load(f"experiments_planted/{name}/gap.json")["rows"]}
        for name in ("sasrec", "hstu", "llama")
    )
    readme, page = (" ".join(path.read_text().split()) for path in (README, PAGE))
    returns = ", returns"
    assert verdict.verdict(list(hstu.values()), suffix=returns).told
    for part in ("", returns):
        assert verdict.verdict(list(llama.values()), suffix=part).told
        assert not verdict.verdict(list(sasrec.values()), suffix=part).told
        # "compressed history is above full history"
        assert sasrec["compressed" + part]["ndcg@10"] > sasrec["full" + part]["ndcg@10"]
    # "where compressed history is above full history no share can be told"
    assert not verdict.verdict(list(hstu.values())).told
    assert hstu["compressed"]["ndcg@10"] > hstu["full"]["ndcg@10"]
    closed = {
        name: [share(rows["compressed" + part], "ndcg@10") for part in ("", returns)]
        for name, rows in (("hstu", hstu), ("llama", llama))
    }
    sentence = "Of the gap of the returns HSTU's tokens close {}, Llama's {}"
    assert sentence.format(closed["hstu"][1], closed["llama"][1]) in readme
    assert f"of that of all targets Llama's {closed['llama'][0]}, whose mean" in readme
    by = [share(hstu["compressed, returns"], m) for m in ("ndcg@10", "recall@10", "mrr")]
    sentence = "close {} of the gap of the returns by NDCG@10, {} by Recall@10 and {} by MRR"
    assert sentence.format(*by) in page
    near = hstu["compressed, after 32"]
    missed = f"of those after 32 to 47 events {share(near, 'ndcg@10')} by NDCG@10, which misses"
    assert missed in page
    assert near["ndcg@10_closed"] < 0.9
    assert hstu["compressed, returns"]["ndcg@10_closed_low"] > 0.9
    sentence = "its tokens close {} of the gap of all targets and {} of that of the returns"
    assert sentence.format(*closed["llama"]) in page
    assert (
        llama["compressed, returns"]["ndcg@10_closed"]
        >= 0.9
        > llama["compressed"]["ndcg@10_closed"]
    )
    assert f"the mean, {llama['compressed']['ndcg@10_closed']:.3f}, is just below it" in page
    assert f"mean, {llama['compressed']['ndcg@10_closed']:.3f}, is just below the target" in readme
    texts = {row["name"]: row for row in load("experiments_planted/hllm/gap.json")["rows"]}
    assert verdict.verdict(list(texts.values())).told
    closed = [share(texts["compressed" + part], "ndcg@10") for part in ("", ", returns")]
    assert sentence.format(*closed) in page
    sentence = "misses the target of 90 %: {} of all targets and {} of the returns"
    assert sentence.format(*closed) in readme
    assert all(texts["compressed" + p]["ndcg@10_closed_high"] < 0.9 for p in ("", ", returns"))
    found = load("experiments_planted/hllm_and_llama.json")
    ratio = found["metrics"]["ndcg@10"]["ratio"]
    times = f"{ratio['mean']:.3f} [{ratio['low']:.3f}, {ratio['high']:.3f}] times as good"
    hllm = " ".join((ROOT / "docs" / "hllm.md").read_text().split())
    assert f"closes {closed[0]} of the gap" in hllm
    assert times in page
    assert times in hllm
    assert f"over the same {found['users']:,} users" in page
    for rows in (sasrec, hstu, llama):
        assert rows["compressed, returns"]["ndcg@10_low"] > rows["recent, returns"]["ndcg@10_high"]
        # "shown only its window, a compressed model is below"
        without = rows["compressed without its tokens"]
        assert without["ndcg@10"] < rows["recent"]["ndcg@10"]
    # "level with SASRec's", and "compressed"
    assert 0.97 < hstu["full"]["ndcg@10"] / sasrec["full"]["ndcg@10"] < 1.03
    for mode in ("full", "compressed"):
        assert f"{hstu[mode]['ndcg@10']:.4f} against {sasrec[mode]['ndcg@10']:.4f}" in page
    # "above the full history of both others"
    others = [rows["full"]["ndcg@10"] for rows in (hstu, llama)]
    level = sasrec["compressed"]["ndcg@10"]
    assert level > max(others)
    assert f"({level:.4f} against {others[0]:.4f} and {others[1]:.4f})" in page
    for name in ("hstu_batch", "hstu_batch_and_rate"):
        found = load(f"experiments_planted/{name}.json")
        ratio = found["metrics"]["ndcg@10"]["ratio"]
        times = f"{ratio['mean']:.3f} [{ratio['low']:.3f}, {ratio['high']:.3f}] times"
        assert times in page
        assert f"all {found['users']:,} users" in page
