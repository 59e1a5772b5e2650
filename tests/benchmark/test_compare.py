"""Comparison of two benchmark runs: pairing, noise, refusals."""

import json

import numpy as np
import pytest

from jaxrec.benchmark import compare
from jaxrec.errors import DataError


def row(factor, spread, history=8, method="full"):
    rng = np.random.default_rng(history)
    cell = {"method": method, "history": history, "segments": 2, "tokens": 0, "batch": 1}
    return {**cell, "rounds_ms": (factor * (10 + spread * rng.standard_normal(40))).tolist()}


def test_a_real_difference_is_told_from_noise():
    before = [row(1, 0.2), row(1, 3.0, history=16)]
    after = [row(1.02, 3.0, history=16), row(2, 0.2), row(1, 1, method="recent")]
    short, long = compare.compare(before, after)
    assert short["ratio"] == pytest.approx(2.0)
    assert not short["within_noise"]
    assert short["low"] < 2 < short["high"]
    assert long["within_noise"]
    text = compare.markdown([short, long])
    assert "slower" in text
    assert "within noise" in text


def test_nothing_in_common_and_missing_files_are_refused(tmp_path):
    with pytest.raises(DataError, match="no cell"):
        compare.compare([row(1, 1)], [row(1, 1, history=16)])
    with pytest.raises(DataError, match=r"report\.json: not there"):
        compare.load(str(tmp_path))
    (tmp_path / "report.json").write_text(json.dumps({"rows": [{"method": "full"}]}))
    with pytest.raises(DataError, match="not a report"):
        compare.load(str(tmp_path))
