"""The documents: short sentences, commands and paths that exist, numbers of results/."""

import importlib.util
import itertools
import json
import pathlib
import re

import pytest

from jaxrec.experiments import verdict

ROOT = pathlib.Path(__file__).parents[2]
RESULTS = ROOT / "results"
README = ROOT / "README.md"
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("benchmarks/**/*.md")])
MEAN_WORDS = 22  # words of a sentence of the README, on average, at most


def ids(path):
    return str(path.relative_to(ROOT))


def without_code(text):
    return re.sub(r"^```.*?^```$", "", text, flags=re.DOTALL | re.MULTILINE)


def sentences(markdown):
    """Sentences of paragraphs and list items; no code blocks, tables or headings."""
    paragraphs, lines = [], []
    for line in [*without_code(markdown).splitlines(), ""]:
        line = line.strip()
        item = re.match(r"([-*]|\d+\.)\s+", line)
        if not line or line[0] in "|#" or item:
            paragraphs.append(" ".join(lines))
            lines = []
        if item:
            line = line[item.end() :]
        if line and line[0] not in "|#":
            lines.append(line)
    return [s for p in paragraphs if p for s in re.split(r"(?<=[.!?])\s+", p)]


def test_sentences_are_counted():
    text = "# A head\n\nOne two. Three\nfour five!\n\n- six seven\n- eight\n\n| a | b |\n"
    text += "\n```\nx y z\n```\n"
    assert sentences(text) == ["One two.", "Three four five!", "six seven", "eight"]


def test_sentences_of_the_readme_are_short():
    lengths = [len(sentence.split()) for sentence in sentences(README.read_text())]
    assert sum(lengths) / len(lengths) <= MEAN_WORDS


def test_documents_outside_the_repository_are_not_cited():
    folders = ("jaxrec", "benchmarks", "configs", "docs", "results", "tests")
    files = [path for folder in folders for path in (ROOT / folder).rglob("*") if path.is_file()]
    files += [path for path in ROOT.iterdir() if path.suffix in (".md", ".py", ".cfg", ".toml")]
    assert README in files
    citation = re.compile(r"\b" + "DES" + r"IGN\b")
    citing = []
    for path in files:
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue  # not text
        if citation.search(text):
            citing.append(str(path.relative_to(ROOT)))
    assert citing == []


@pytest.mark.parametrize("page", PAGES, ids=ids)
def test_modules_of_commands_exist(page):
    for name in re.findall(r"python3? -m ([\w.]+)", page.read_text()):
        name = name.rstrip(".")
        spec = importlib.util.find_spec(name)
        assert spec is not None, name
        if spec.submodule_search_locations is not None and name.startswith("jaxrec"):
            assert importlib.util.find_spec(f"{name}.__main__") is not None, name


@pytest.mark.parametrize("page", PAGES, ids=ids)
def test_paths_exist(page):
    pattern = r"`((?:jaxrec|benchmarks|tests|configs)/[\w/.*-]+)`"
    for path in re.findall(pattern, page.read_text()):
        assert list(ROOT.glob(path.rstrip("/"))), path


def load(name):
    return json.loads((RESULTS / name).read_text())


def with_interval(row, key, digits):
    mean, low, high = (row[key + end] for end in ("", "_low", "_high"))
    return f"{mean:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"


def test_the_readme_quotes_the_ablations():
    rows = {row["name"]: row for row in load("ablations/completejourney/ablations.json")["rows"]}
    for name in ("recipe", "full history", "no repeat-aware scores"):
        ndcg = with_interval(rows[name], "ndcg@10", 4)
        of_recipe = with_interval(rows[name], "ndcg_of_base", 3)
        assert f"| {name} | {ndcg} | {of_recipe} |\n" in README.read_text()


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
    page, readme = (ROOT / "docs" / "experiments.md").read_text(), README.read_text()
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
    page = (ROOT / "docs" / "experiments.md").read_text()
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
    page, readme = (ROOT / "docs" / "experiments.md").read_text(), README.read_text()
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
    """Rows of docs/experiments.md from the gap of generated returns."""
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
    page = (ROOT / "docs" / "experiments.md").read_text()
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
    """Rows of docs/experiments.md from the lengths of generated histories."""
    for row in load("experiments_returns/sasrec_experiments/length.json")["rows"]:
        cells = [row["name"], with_interval(row, "recall@10", 3), with_interval(row, "ndcg@10", 3)]
        cells.append(f"{row['flops_of_full']:.1%}")
        yield "| " + " | ".join(cells) + " |"


def test_the_documents_quote_lengths():
    page = (ROOT / "docs" / "experiments.md").read_text()
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
    page, readme = (ROOT / "docs" / "experiments.md").read_text(), README.read_text()

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
    readme, page = README.read_text(), (ROOT / "docs" / "experiments.md").read_text()
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


@pytest.mark.parametrize(
    ("name", "folder"),
    [
        ("MovieLens-1M, 200 against 50", "experiments_ml1m/sasrec"),
        ("The Complete Journey, 500 against 100", "savings/completejourney"),
        ("MovieLens latest-small, 375 against 50", "savings/ml_latest_small"),
    ],
)
def test_the_readme_quotes_public_data_as_they_are(name, folder):
    rows = {row["name"]: row for row in load(f"{folder}/gap.json")["rows"]}
    events = " against ".join(str(rows[mode]["history"]) for mode in ("full", "recent"))
    assert name.endswith(events)
    shown = ("popularity", "recent", "compressed", "full")
    cells = [with_interval(rows[mode], "ndcg@10", 4) for mode in shown]
    cells.append(with_interval(rows["compressed"], "ndcg@10_gap", 4))
    assert f"| {name} | {' | '.join(cells)} |\n" in README.read_text()
    assert all(not row.get("still_rising") for row in rows.values())
    if "personal frequency" in rows:
        reached = f"{rows['personal frequency']['ndcg@10']:.4f}"
        assert f"Personal frequency reaches {reached} on The Complete" in README.read_text()


def test_the_verdicts_that_are_quoted():
    page = (ROOT / "docs" / "reading-results.md").read_text()
    files = sorted(RESULTS.glob("savings/*/verdict.txt"))
    assert len(files) == 3
    for file in files:
        assert f"| {file.read_text().splitlines()[0]} |\n" in page


def share(row, metric):
    """The share of the gap that is closed, with its interval."""
    mean, low, high = (row[f"{metric}_closed{end}"] for end in ("", "_low", "_high"))
    return f"{mean:.0%} [{low:.0%}, {high:.0%}]"


def test_the_page_on_the_service_quotes_its_latency():
    page, result = (ROOT / "docs" / "service.md").read_text(), load("service.json")
    by_rate = {}
    for row in result["rows"]:
        by_rate.setdefault(row["rate"], {})[row["service"]] = row["latency"]["all"]
        assert set(row["statuses"]) == {"200"}
    for rate, services in by_rate.items():
        cells = [f"{rate:.0f}"]
        for name in ("compressed", "full"):
            found = services.get(name)
            cells += [f"{found[key]:.0f}" if found else "" for key in ("p50_ms", "p99_ms")]
        assert (f"| {' | '.join(cells)} |\n" in page) == (rate > 20), cells
    compressed, full = (
        f"{result['services'][name]['sustained_rate']:.0f}" for name in ("compressed", "full")
    )
    assert f"sustains {compressed} requests a second, the full-history model\n{full}." in page
    words = f"{compressed} requests a second with a p99 below 50 ms on two CPU cores,\n{full} with"
    assert words in README.read_text()


@pytest.mark.parametrize(
    ("data", "row", "other", "targets"),
    [
        ("completejourney", "jaxrec-hstu-compressed", "rectools-sasrec", "all"),
        ("completejourney", "jaxrec-hstu-compressed", "frequency-all", "all"),
        ("completejourney", "jaxrec-hstu-discover", "rectools-sasrec", "new to the user"),
        ("ml-latest-small", "jaxrec-hstu", "rectools-sasrec", "new to the user"),
        ("ml-100k", "jaxrec-hstu", "rectools-sasrec", "new to the user"),
    ],
)
def test_the_readme_quotes_the_peers(data, row, other, targets):
    comparisons = {part["data"]: part["comparisons"] for part in load("quality.json")["data"]}
    key = "rank" if targets == "all" else "rank_filtered"
    ratio = comparisons[data][key][f"{row} / {other}"]["ndcg@10"]["ratio"]
    cell = f"{ratio['mean']:.3f} [{ratio['low']:.3f}, {ratio['high']:.3f}]"
    assert f"| {data} | {row} | {other} | {targets} | {cell} |\n" in README.read_text()
