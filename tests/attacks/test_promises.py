"""The table of promises names tests that exist, and all promises of the state store."""

import json
import pathlib
import re

ROOT = pathlib.Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "promises.md").read_text()


def test_every_test_exists():
    named = re.findall(r"`(tests/[\w/]+\.py)(?:::(\w+))?`", PAGE)
    assert len(named) > 80
    for file, name in named:
        assert re.search(rf"^def {name}\(" if name else "", (ROOT / file).read_text(), re.MULTILINE)


def test_every_promise_has_a_test():
    tables = re.sub(r"(?s)\nCounts of .*?\n## ", "\n## ", PAGE)  # what follows holds numbers
    rows = re.findall(r"^\| (.+?) \| (.+) \|$", tables, re.MULTILINE)
    promises = {promise: tests for promise, tests in rows if not promise.startswith("---")}
    assert all("`tests/" in tests for name, tests in promises.items() if tests != "tests")
    text = (ROOT / "docs" / "state-store.md").read_text()
    table = text.split("## What is promised")[1].split("## Layout")[0]
    for promise in re.findall(r"^\| ([^|]+?) \|", table, re.MULTILINE):
        assert promise in promises or promise.startswith("---"), promise


def test_the_counts_are_those_of_the_record():
    record = json.loads((ROOT / "results" / "attacks.json").read_text())
    assert f"`{record['command']}`" in PAGE
    for what, total in (("kills", 100), ("flips", 600)):
        lines = [f"| {n} | {' | '.join(map(str, c.values()))} |" for n, c in record[what].items()]
        assert all(line in PAGE.splitlines() for line in lines)
        counts = record[what].values()
        assert sum(c["kills"] if what == "kills" else sum(c.values()) for c in counts) == total
    assert all(not counts["silent"] for counts in record["flips"].values())
