"""Ranks by encoding of the state: float32 is the model itself, the others are close."""

import numpy as np

from jaxrec.benchmark import state_encodings
from jaxrec.serving.state_rows import Events
from tests.serving import standin


def test_float32_ranks_are_those_of_one_masked_forward():
    rec = standin.make()
    histories, expected = [], []
    for user in range(6):
        items, times = standin.history(user, 3 + 5 * user)
        dense = rec.catalog.vocabulary.encode(items)
        histories.append(Events(dense, (times - standin.ORIGIN).astype(np.int32)))
        scores = standin.expected(rec, items[:-1], times[:-1])
        expected.append(int((scores > scores[dense[-1] - 1]).sum()))
    lines = state_encodings.measure(rec, histories)
    assert state_encodings.ranks(rec, histories, ("float32",))["float32"].tolist() == expected
    assert [line["form"] for line in lines] == ["float32", "bfloat16", "int8"]
    sizes = [line["vector_bytes"] for line in lines]
    assert sizes[0] == 2 * sizes[1]
    assert sizes[2] < sizes[1]
    assert lines[0]["ranks_that_differ"] == 0
    assert all(line["users"] == 6 and 0 <= line["ndcg@10"] <= line["recall@10"] for line in lines)


def test_quality_of_one_target_per_user():
    metrics = state_encodings.quality(np.asarray([0, 1, 10]), 10)
    assert metrics["recall@10"] == 2 / 3
    np.testing.assert_allclose(metrics["ndcg@10"], (1 + 1 / np.log2(3)) / 3)
