"""The documents: short sentences, commands and paths that exist, numbers of results/."""

import importlib.util
import re

import pytest

from tests.integration.quoted import README, RESULTS, ROOT, load, with_interval

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


def test_the_readme_quotes_the_ablations():
    rows = {row["name"]: row for row in load("ablations/completejourney/ablations.json")["rows"]}
    for name in ("recipe", "full history", "no repeat-aware scores"):
        ndcg = with_interval(rows[name], "ndcg@10", 4)
        of_recipe = with_interval(rows[name], "ndcg_of_base", 3)
        assert f"| {name} | {ndcg} | {of_recipe} |\n" in README.read_text()


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
