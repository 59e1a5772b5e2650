"""The table of promises names tests that exist, and all promises of the state store."""

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
    rows = re.findall(r"^\| (.+?) \| (.+) \|$", PAGE, re.MULTILINE)
    promises = {promise: tests for promise, tests in rows if not promise.startswith("---")}
    assert all("`tests/" in tests for name, tests in promises.items() if tests != "tests")
    text = (ROOT / "docs" / "state-store.md").read_text()
    table = text.split("## What is promised")[1].split("## Layout")[0]
    for promise in re.findall(r"^\| ([^|]+?) \|", table, re.MULTILINE):
        assert promise in promises or promise.startswith("---"), promise
