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


SHOWN = ("recent", "compressed without its tokens", "compressed", "full")
RULES = ("popularity", "personal frequency", "oracle")  # the same for every encoder
PLANTED = ("sasrec", "hstu", "llama", "hllm")


def planted(name):
    """Rows of a table of planted returns by name."""
    return {row["name"]: row for row in load(f"experiments_planted/{name}/gap.json")["rows"]}


def levels_of_returns(encoder, rows, name):
    """A line of docs/tokens.md: a row's levels of all targets and of the returns."""
    cells = ["" if name in RULES else encoder, name]
    both = [rows.get(name), rows.get(f"{name}, returns")]
    for row in both:
        for metric in ("recall@10", "ndcg@10"):
            cells.append("" if row is None else with_interval(row, metric, 4))
    row = both[0] or both[1]
    cells.append(f"{row['flops_of_full']:.1%}" if "flops_of_full" in row else "")
    return f"| {' | '.join(cells)} |\n"


@pytest.mark.parametrize("encoder", PLANTED)
def test_the_documents_quote_planted_returns(encoder):
    rows = planted(encoder)
    page, readme = PAGE.read_text(), README.read_text()
    recipe = (ROOT / "configs" / "experiments_planted.py").read_text()
    for name in (*SHOWN, *(RULES if encoder == "sasrec" else ())):
        assert levels_of_returns(encoder, rows, name) in page
    shown = {"full": "full history of 127", "recent": "recent window of 31"}
    parts = {"": "all", ", returns": "returns", ", after 32": "returns after 32 to 47 events"}
    parts[", after 48"] = "returns after 48 events and more"
    for name in ("full", "compressed", "recent"):
        cells = [encoder, shown.get(name, name)]
        cells += [with_interval(rows[name + part], "ndcg@10", 4) for part in ("", ", returns")]
        cells.append(f"{rows[name]['flops_of_full']:.1%}")
        assert f"| {' | '.join(cells)} |\n" in readme
        level = f"{rows[name]['ndcg@10']:.4f}".removeprefix("0")
        assert f"{level} ({name})" in recipe.replace("\n", " ")
    for part, targets in parts.items():
        closed = [share(rows["compressed" + part], m) for m in ("recall@10", "ndcg@10", "mrr")]
        assert f"| {encoder} | {targets} | {' | '.join(closed)} |\n" in page
    for part in ("", ", returns"):
        assert with_interval(rows["compressed" + part], "ndcg@10_gap", 4) in page
    assert all(not row.get("still_rising") for row in rows.values())
    # "shown only its window, a compressed model is below", and what tokens carry is returns
    assert rows["compressed without its tokens"]["ndcg@10"] < rows["recent"]["ndcg@10"]
    assert rows["compressed, returns"]["ndcg@10_low"] > rows["recent, returns"]["ndcg@10_high"]


def test_the_documents_quote_what_a_trained_model_is_worth_at_the_start():
    rows = load("experiments_planted/llama_init_from/ablations.json")["rows"]
    page = PAGE.read_text()
    for row in rows:
        cells = [row["name"], *(with_interval(row, m, 4) for m in ("recall@10", "ndcg@10"))]
        cells.append(with_interval(row, "ndcg_of_base", 3))
        assert f"| {' | '.join(cells)} |\n" in page
    assert len(rows) == 2
    assert rows[1]["ndcg_of_base_high"] < 1  # "most of it"


def test_the_documents_say_what_dropout_costs():
    """Short trainings of full history, the whole ones with dropout, and one from compressed."""
    page = PAGE.read_text()
    words = " ".join(page.split())
    for folder in ("sasrec_full", "sasrec_init_from"):
        rows = load(f"experiments_planted/{folder}/ablations.json")["rows"]
        for row in rows:
            cells = [row["name"], *(with_interval(row, m, 4) for m in ("recall@10", "ndcg@10"))]
            cells.append(with_interval(row, "ndcg_of_base", 3))
            assert f"| {' | '.join(cells)} |\n" in page
    begun = {row["name"]: row for row in rows}
    # "does not get further"
    later = begun["full history that begins with compressed"]
    assert later["ndcg@10_high"] < begun["full history"]["ndcg@10_low"]
    short = {
        row["name"]: row for row in load("experiments_planted/sasrec_full/ablations.json")["rows"]
    }
    assert 0.78 < short["dropout of item vectors"]["ndcg_of_base"] < 0.82  # "a fifth"
    assert short["both"]["ndcg_of_base"] > 0.95 * short["dropout of item vectors"]["ndcg_of_base"]
    rate = short["twice the rate"]  # "makes no difference here"
    assert rate["ndcg_of_base_low"] < 1 < rate["ndcg_of_base_high"]
    levels = [
        with_interval(planted(n)["full, returns"], "ndcg@10", 4)
        for n in ("sasrec_dropout", "sasrec")
    ]
    sentence = (
        "full history had {} on the returns after 24,000 steps, without it has {} after 12,000."
    )
    assert sentence.format(*levels) in words
    levels = [
        with_interval(planted(n)["full, returns"], "ndcg@10", 4) for n in ("hstu_dropout", "hstu")
    ]
    sentence = "HSTU's had {} after 16,000 steps with dropout, and has {} after 12,000 without"
    assert sentence.format(*levels) in words
    assert load("experiments_planted/sasrec_dropout/gap.json")["protocol"]["training"].startswith(
        "24000 steps"
    )


def test_the_documents_say_what_parts_are_worth():
    """Pooled tokens, another seed and as many means, beside tokens of parts: with dropout."""
    names = ("hstu_dropout", "hstu_pooled", "llama_seed_1", "llama_pooled_seed_1", "llama_pooled")
    hstu, hstu_pooled, other, other_pooled, small = map(planted, names)
    readme, page = (" ".join(path.read_text().split()) for path in (README, PAGE))
    name = "compressed, returns"

    def closed(rows, row="compressed"):
        return [share(rows[row + part], "ndcg@10") for part in ("", ", returns")]

    for rows, text in ((hstu_pooled, "[with pooled tokens]"), (hstu, "[with tokens of parts]")):
        assert f"{with_interval(rows[name], 'ndcg@10', 4)} {text}" in page.replace(
            "on the returns [with pooled", "[with pooled"
        )
    assert hstu_pooled[name]["ndcg@10_high"] < hstu[name]["ndcg@10_low"]
    full = [rows["full, returns"]["ndcg@10"] for rows in (hstu_pooled, hstu)]
    assert "full history had {:.4f} then and {:.4f} later".format(*full) in page
    sentence = "pooled tokens close {} of the gap of all targets and {} of that of the returns"
    assert sentence.format(*closed(other_pooled)) in page
    assert "tokens of parts {} and {}".format(*closed(other)) in page
    assert (
        "whose distance is known, close {} and {}".format(*closed(other, "mean-pooled-parts"))
        in page
    )
    assert "the first seed) it is {} and {}".format(*closed(small)) in page
    # "makes no difference"
    assert other_pooled[name]["ndcg@10_closed_low"] < small[name]["ndcg@10_closed"]
    assert other_pooled[name]["ndcg@10_closed_high"] > small[name]["ndcg@10_closed"]
    assert other_pooled[name]["ndcg@10_closed_high"] < other[name]["ndcg@10_closed_low"]
    assert f"(with another seed {closed(other)[1]})" in readme
    assert f"(with another seed {closed(other)[0]})" in readme
    means = closed(other, "mean-pooled-parts")
    assert "in place of Llama's tokens, closes {} and {}".format(*means) in readme
    assert all(not row.get("still_rising") for row in (*hstu.values(), *other.values()))


def test_what_the_documents_say_of_planted_returns():
    """The sentences beside the tables."""
    sasrec, hstu, llama, hllm = map(planted, PLANTED)
    readme, page = (" ".join(path.read_text().split()) for path in (README, PAGE))
    parts = ("", ", returns")
    closed = {
        name: [share(rows["compressed" + part], "ndcg@10") for part in parts]
        for name, rows in (("hstu", hstu), ("llama", llama), ("hllm", hllm))
    }
    for part in parts:
        for rows in (hstu, llama, hllm):
            assert verdict.verdict(list(rows.values()), suffix=part).told
        # "compressed history is above full history"
        assert not verdict.verdict(list(sasrec.values()), suffix=part).told
        assert sasrec["compressed" + part]["ndcg@10"] > sasrec["full" + part]["ndcg@10"]
        # HLLM "misses"
        assert hllm["compressed" + part]["ndcg@10_closed_high"] < 0.9
    sentence = "Of the gap of all targets HSTU's tokens close {} and Llama's {} ("
    assert sentence.format(closed["hstu"][0], closed["llama"][0]) in readme
    assert f"Of all targets it is {share(hstu['compressed'], 'mrr')} by MRR" in page
    assert not verdict.verdict(list(hstu.values()), "recall@10").told
    near, far = (hstu[f"compressed, after {n}"]["ndcg@10_closed"] for n in (32, 48))
    assert near < 0.9 < far  # "most of all after 32 to 47 events"
    near = [share(hstu["compressed, returns"], m) for m in ("ndcg@10", "recall@10", "mrr")]
    sentence = (
        "returns HSTU's {}, which misses the target of 90 % ({} by Recall@10), and Llama's {} ("
    )
    assert sentence.format(*near[:2], closed["llama"][1]) in readme
    assert "of the returns {} by NDCG@10, {} by Recall@10 and {} by MRR".format(*near) in page
    assert hstu["compressed, returns"]["ndcg@10_closed"] < 0.9
    before = planted("hstu_dropout")
    gains = [
        (before[f"{mode}, returns"]["ndcg@10"], hstu[f"{mode}, returns"]["ndcg@10"])
        for mode in ("full", "compressed")
    ]
    assert (
        "full history by more ({:.4f} to {:.4f}, compressed {:.4f} to {:.4f})".format(
            *gains[0], *gains[1]
        )
        in page
    )
    sentence = "its tokens close {} of the gap of all targets and {} of that of the returns"
    for name in ("llama", "hllm"):
        assert sentence.format(*closed[name]) in page
    mean = llama["compressed"]["ndcg@10_closed"]
    assert llama["compressed, returns"]["ndcg@10_closed"] >= 0.9 > mean
    assert f"of all targets the mean, {mean:.3f}, is just below it" in page
    sentence = "misses the target: {} and {}. All are"
    assert sentence.format(*closed["hllm"]) in readme
    found = load("experiments_planted/hllm_and_llama.json")
    ratio = found["metrics"]["ndcg@10"]["ratio"]
    times = f"{ratio['mean']:.3f} [{ratio['low']:.3f}, {ratio['high']:.3f}] times as good"
    text = " ".join((ROOT / "docs" / "hllm.md").read_text().split())
    assert f"closes {closed['hllm'][0]} of the gap" in text
    assert times in page
    assert times in text
    assert f"over the same {found['users']:,} users" in page
    for mode in ("full", "compressed"):
        assert f"{hstu[mode]['ndcg@10']:.4f} against {sasrec[mode]['ndcg@10']:.4f}" in page
        assert 0.97 < hstu[mode]["ndcg@10"] / sasrec[mode]["ndcg@10"] < 1.03  # "within 3 %"
    # "far from the oracle", "the best full history of the returns is HSTU's"
    best = sasrec["oracle, returns"]
    full = [rows["full, returns"]["ndcg@10"] for rows in map(planted, PLANTED)]
    assert max(full) < 0.6 * best["ndcg@10_low"]
    assert f"NDCG@10 of {with_interval(best, 'ndcg@10', 4)} on the returns" in page
    assert with_interval(best, "ndcg@10", 4) in readme
    assert max(full) == hstu["full, returns"]["ndcg@10"]
    assert f"is HSTU's, {max(full):.4f}" in page
    for name in ("hstu_batch", "hstu_batch_and_rate"):
        found = load(f"experiments_planted/{name}.json")
        ratio = found["metrics"]["ndcg@10"]["ratio"]
        times = f"{ratio['mean']:.3f} [{ratio['low']:.3f}, {ratio['high']:.3f}] times"
        assert times in page
        assert f"all {found['users']:,} users" in page
