"""What the documents say of generated returns: figures and sentences of results/."""

import dataclasses
import itertools

import numpy as np
import pytest

from configs import experiments_returns
from jaxrec.data.datasets import synthetic
from jaxrec.experiments import verdict
from tests.integration.quoted import README, ROOT, load, share, with_interval

PAGE = ROOT / "docs" / "tokens.md"


def lines_of_returns(folder):
    """Rows of docs/tokens.md from the gap of generated returns."""
    metrics = ("recall@10", "ndcg@10", "mrr")
    for row in load(f"experiments_returns/{folder}/gap.json")["rows"]:
        if not row["name"].endswith(", returns"):
            continue
        cells = [folder.split("_")[0], row["name"].removesuffix(", returns")]
        cells += [with_interval(row, metric, 3) for metric in metrics[:2]]
        closed = "ndcg@10_closed" in row
        cells += [share(row, metric) if closed else "" for metric in metrics]
        cells.append(f"{row['flops_of_full']:.1%}" if "flops_of_full" in row else "")
        yield "| " + " | ".join(cells) + " |"


@pytest.mark.parametrize("backbone", ["sasrec", "hstu", "llama"])
def test_the_documents_quote_generated_returns(backbone):
    page = PAGE.read_text()
    for line in lines_of_returns(f"{backbone}_gap"):
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


def closed_by(row, metric):
    """The share of the gap that a state closes, to a tenth of a percent."""
    ends = (row[f"{metric}_closed{end}"] for end in ("", "_low", "_high"))
    return "{:.1%} [{:.1%}, {:.1%}]".format(*ends)


def lines_of_bytes(folder):
    """Rows of docs/tokens.md from the bytes of states."""
    for row in load(f"experiments_returns/{folder}/bytes.json")["rows"]:
        if "tokens" not in row:
            continue
        cells = [row["name"], f"{row['row_bytes']:,}"]
        cells += [closed_by(row, metric) for metric in ("recall@10", "ndcg@10", "mrr")]
        cells.append(f"{row['flops_of_full']:.1%}")
        yield "| " + " | ".join(cells) + " |"


def test_the_documents_quote_the_bytes_of_states():
    page, readme = PAGE.read_text(), README.read_text()
    for line in lines_of_bytes("sasrec_many"):
        assert f"{line}\n" in page
    many = {r["name"]: r for r in load("experiments_returns/sasrec_many/bytes.json")["rows"]}
    assert f"{many['full']['targets']:,} returns" in page
    two = {r["name"]: r for r in load("experiments_returns/sasrec/bytes.json")["rows"]}
    small = two["1 token, int8"]
    assert f"closes {closed_by(small, 'ndcg@10')} by NDCG@10 as int8" in " ".join(page.split())
    assert f"a user's row is then {small['row_bytes']} bytes" in " ".join(page.split())
    assert (
        f"row of {small['row_bytes']} bytes, still closes {closed_by(small, 'ndcg@10')}" in readme
    )
    assert small["row_bytes"] > two["full"]["row_bytes"]
    # "the curve is flat from there on"
    assert all(0.98 < r["ndcg@10_closed"] < 1.02 for r in two.values() if "tokens" in r)
    for name, row in many.items():  # "nothing is carried", "at its plateau"
        if row.get("tokens", 0) in (1, 2):
            assert abs(row["ndcg@10_closed"]) < 0.02, name
        elif "tokens" in row:
            assert 0.79 < row["ndcg@10_closed"] < 0.82, name
    folder = "sasrec_many_batch_32"
    for line in lines_of_bytes(folder):
        assert f"{line}\n" in page
    larger = {r["name"]: r for r in load(f"experiments_returns/{folder}/bytes.json")["rows"]}
    assert f"NDCG@10 {larger['full']['ndcg@10']:.4f} on the returns" in page
    assert larger["full"]["ndcg@10_high"] < many["full"]["ndcg@10_low"]  # "trained less there"
    assert f"two kept {closed_by(larger['2 tokens, float32'], 'ndcg@10')} of the gap" in readme
    for less, more in ((1, 2), (2, 4), (4, 8)):  # "a curve that rises"
        low, high = (
            larger[f"{k} token{'s' * (k > 1)}, float32"]["ndcg@10_closed"] for k in (less, more)
        )
        assert low < high
    for rows in (two, many):  # "what int8 costs the intervals do not show"
        for row in rows.values():
            if row["series"] == "int8":
                exact = rows[row["name"].replace("int8", "float32")]
                assert row["ndcg@10_closed"] > exact["ndcg@10_closed_low"]
                assert row["row_bytes"] < 0.4 * exact["row_bytes"]  # "a third"


def test_what_the_documents_say_of_many_favourites():
    folders = ("sasrec_many", "sasrec_many_absolute")
    relative, absolute = (
        {row["name"]: row for row in load(f"experiments_returns/{folder}/gap.json")["rows"]}
        for folder in folders
    )
    text = PAGE.read_text()
    readme, page = (" ".join(path.read_text().split()) for path in (README, PAGE))
    for folder in ("sasrec_many", "hstu_many"):
        for line in lines_of_returns(folder):
            assert f"{line}\n" in text
    hstu = {r["name"]: r for r in load("experiments_returns/hstu_many/gap.json")["rows"]}
    weak, strong = (with_interval(r["full, returns"], "ndcg@10", 4) for r in (hstu, relative))
    assert f"an NDCG@10 of {weak} on the returns, where SASRec's has {strong}" in page
    assert f"Its tokens close {share(hstu['compressed, returns'], 'ndcg@10')} of that gap" in page
    kept, blind = relative["compressed, returns"], relative["mean-pooled-parts, returns"]
    assert f"{kept['targets']:,} returns" in page
    assert f"{kept['targets']:,} returns" in readme
    assert f"close {share(blind, 'ndcg@10')} of the gap" in page
    assert f"Learned tokens close {share(kept, 'ndcg@10')}, for as many FLOPs" in page
    assert f"every segment {share(relative['mean-pooled, returns'], 'ndcg@10')}." in page
    result = load("experiments_returns/sasrec_many_longer/gap.json")
    longer = {row["name"]: row for row in result["rows"]}
    ours, whole = longer["compressed, returns"], longer["full, returns"]
    assert f"NDCG@10 of {with_interval(whole, 'ndcg@10', 4)} on the returns" in page
    assert f"compressed history {with_interval(ours, 'ndcg@10', 4)}: it learned no more" in page
    assert f"closes {share(ours, 'ndcg@10')} ({share(ours, 'recall@10')} by Recall@10)" in page
    assert f"many means {share(longer['mean-pooled-parts, returns'], 'ndcg@10')}." in page
    assert whole["ndcg@10_low"] > relative["full, returns"]["ndcg@10_high"]
    assert ours["ndcg@10"] < kept["ndcg@10_high"]
    assert result["protocol"]["training"].startswith("12000 steps of 32, ")
    assert 12000 * 32 == 3 * 16_000 * 8  # "three times as many events"
    found = load("experiments_returns/sasrec_many_smaller_segments.json")
    ratio = found["metrics"]["ndcg@10"]["ratio"]
    assert f"{ratio['mean']:.3f} [{ratio['low']:.3f}, {ratio['high']:.3f}] times" in page
    assert blind["flops_of_full"] == kept["flops_of_full"]
    assert f"Of all targets they close {share(relative['compressed'], 'ndcg@10')}" in page
    assert f"In Recall@10 of the returns it is {share(kept, 'recall@10')}" in page
    assert kept["recall@10_closed_high"] < 0.9 or kept["ndcg@10_closed_high"] < 0.9  # "missed"
    for part, label in (("", "all"), (", returns", "returns")):
        for mode in ("recent", "compressed", "full"):
            cells = [
                with_interval(rows[mode + part], "ndcg@10", 4) for rows in (absolute, relative)
            ]
            assert f"| {label} | {mode} | {' | '.join(cells)} |\n" in text
    # "full history of absolute positions ranks returns as well, and everyday events worse"
    assert abs(absolute["full, returns"]["ndcg@10"] - relative["full, returns"]["ndcg@10"]) < 0.002
    assert absolute["full"]["ndcg@10_high"] < relative["full"]["ndcg@10_low"]
    assert absolute["full"]["ndcg@10_high"] < absolute["compressed"]["ndcg@10_low"]
    for part in ("", ", returns"):
        assert relative["compressed" + part]["ndcg@10"] < relative["full" + part]["ndcg@10"]


def test_what_the_documents_say_of_tokens_of_parts():
    folders = ("sasrec_many_longer", "sasrec_many_parts_longer")
    (before, pooled), (result, parts) = (
        (table, {row["name"].removesuffix(", returns"): row for row in table["rows"]})
        for table in (load(f"experiments_returns/{folder}/gap.json") for folder in folders)
    )
    for name in ("recent", "full"):  # the same runs
        assert parts[name]["ndcg@10"] == pooled[name]["ndcg@10"]
    assert result["protocol"]["training"] == before["protocol"]["training"]
    shown = [
        ("full history of 80", parts["full"]),
        ("compressed, 4 x 4 tokens of parts", parts["compressed"]),
        ("compressed, 4 x 4 pooled tokens", pooled["compressed"]),
        ("as many means instead of tokens", pooled["mean-pooled-parts"]),
        ("recent window of 16", parts["recent"]),
    ]
    names = ["full", "compressed, tokens of parts", "compressed, pooled tokens"]
    names += ["mean-pooled-parts", "recent"]
    metrics = ("recall@10", "ndcg@10", "mrr")
    for (label, row), name in zip(shown, names, strict=True):
        closed = [share(row, m) if "ndcg@10_closed" in row else "" for m in metrics]
        cells = [label, with_interval(row, "recall@10", 3), with_interval(row, "ndcg@10", 3)]
        cells += [closed[1], f"{row['flops_of_full']:.1%}"]
        assert f"| {' | '.join(cells)} |\n" in README.read_text()
        cells = [name, *(with_interval(row, m, 4) for m in metrics[:2]), *closed]
        assert f"| {' | '.join(cells)} |\n" in PAGE.read_text()
    kept, others = parts["compressed"], pooled["compressed"]
    page = " ".join(PAGE.read_text().split())
    level = with_interval(kept, "ndcg@10", 4)
    assert f"an NDCG@10 of {level} on the returns and closes {share(kept, 'ndcg@10')}" in page
    for column in ("flops_of_full", "state_bytes"):  # "for as many FLOPs and bytes"
        assert kept[column] == others[column]
    assert kept["recall@10_closed_low"] > 0.9 > kept["ndcg@10_closed_high"]
    whole = {row["name"]: row for row in result["rows"]}["compressed"]
    assert f"NDCG@10 missed, of all targets too ({share(whole, 'ndcg@10')})" in page
    rows = load("experiments_returns/sasrec_many_parts/ablations.json")["rows"]
    for row in rows:
        cells = [row["name"], *(with_interval(row, m, 4) for m in metrics[:2])]
        cells.append(with_interval(row, "ndcg_of_base", 3))
        assert f"| {' | '.join(cells)} |\n" in PAGE.read_text()
    for better, worse in itertools.pairwise(rows):  # "both settings earn their place"
        if worse["name"] != "tokens begin alike":
            assert better["ndcg_of_base"] > worse["ndcg_of_base"]
    assert max(row["ndcg_of_base_high"] for row in rows[1:]) < 1
    assert rows[-1]["ndcg_of_base_high"] < 0.25  # "it is not the distance alone"
    rows, earlier = (
        {row["name"]: row for row in load(f"experiments_returns/{folder}/gap.json")["rows"]}
        for folder in ("sasrec_many_parts", "sasrec_many")
    )
    short, before = rows["compressed, returns"], earlier["compressed, returns"]
    assert f"{share(short, 'ndcg@10')} of the gap of the returns by NDCG@10" in page
    assert f"({share(short, 'recall@10')} by Recall@10), to a full history of " in page
    assert f"history of {with_interval(rows['full, returns'], 'ndcg@10', 4)}" in page
    readme, recipe = README.read_text(), (ROOT / "configs" / "experiments_returns.py").read_text()
    texts = (share(row, "ndcg@10") for row in (short, before))
    assert "tokens of parts close {} and pooled tokens {}".format(*texts) in " ".join(
        readme.split()
    )
    assert f"{short['ndcg@10_closed']:.2f}".removeprefix("0") + " (sasrec_many_parts)" in recipe
    # "raises full history and leaves them where they are"
    assert kept["ndcg@10_low"] < short["ndcg@10"] < kept["ndcg@10_high"]


def test_returns_of_many_favourites_are_as_old_as_the_documents_say():
    config = experiments_returns.get_config("sasrec_many").data
    table = synthetic.generate(dataclasses.replace(config.synthetic, users=300), config.seed)
    ages = []
    for user in range(1, 301):
        items, returning = (column[table.user == user] for column in (table.item, table.returning))
        for place in np.flatnonzero(returning):
            ages.append(place - np.flatnonzero(items[:place] == items[place])[-1])
    low, high = np.percentile(ages, [2.5, 97.5])
    recipe = (ROOT / "configs" / "experiments_returns.py").read_text()
    for text in (PAGE.read_text(), recipe):
        assert f"last seen {low:.0f} to {high:.0f} events ago" in " ".join(text.split())
