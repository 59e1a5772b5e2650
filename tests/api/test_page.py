"""The page on Python runs from top to bottom."""

import pathlib
import re

import pytest

pytestmark = pytest.mark.slow  # with the other documents that run

PAGE = pathlib.Path(__file__).parents[2] / "docs" / "python.md"


def test_the_page_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(), re.DOTALL | re.MULTILINE)
    assert len(blocks) > 4
    # eight host devices must share a batch of 16 and of 32: they do
    names = {}
    for block in blocks:
        exec(compile(block, str(PAGE), "exec"), names)
    assert names["recommended"].columns == ["user_id", "item_id", "score", "rank", "known"]
    assert names["now_known"]["known"].all()
    assert len(names["neighbours"]) == 3
