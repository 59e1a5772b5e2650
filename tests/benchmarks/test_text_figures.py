"""Figures of texts on the page: what was measured stands there, with its protocol."""

import numpy as np

from benchmarks import figures, parity, text_figures, texts_against_ids
from jaxrec.evaluation.ranks import Ranks


def test_texts_against_ids():
    user = np.array([0, 0, 1])
    ranks = Ranks(user, np.arange(3), np.array([1, 1, 2]), np.array([0, 2, 10]), None)
    row = texts_against_ids.split(ranks, np.array([0, 5, 0]))
    about = {"run": "mine", "items": "texts", "history": "compressed"}
    record = {"protocol": {"ranking": "full catalog"}, "rows": [{**about, **row}]}
    page = text_figures.hllm(figures.table, record)
    assert page.startswith("ranking: full catalog.")
    assert "Warm targets: 2 of 1 users" in page
    assert "Cold targets: 1 of 1 users" in page
    ndcg = row["warm"]["ndcg@10"]["mean"]
    assert f"| mine | texts | compressed | {ndcg:.4f} (" in page


def test_the_item_tower():
    way = {"computed_per_word": 1.02, "words_per_s": 900.0}
    way |= {"median_s": 2.0, "min_s": 1.5, "max_s": 2.5}
    whole = {"texts": 9742, "words": 200000, "packed_per_word": 1.026, "padded_per_word": 3.79}
    row = {
        "catalog": whole,
        "texts": 10,
        "words": 1800,
        "median_words": 18.0,
        "longest": 90,
        "speedup": 3.0,
    }
    said = {"prompt": "The capital", "continuation": " of"}
    page = text_figures.text(
        figures.table, {"generation": said, "rows": [row | {"ways": {"packed": way}}]}
    )
    assert "| packed | 10 | 1,800 | 18 / 90 | 1.020 | 900 | 2.0 (1.5 to 2.5) |" in page
    assert "3.0 times as fast" in page
    assert "'The capital' is continued with ' of'." in text_figures.text(
        figures.table, {"generation": said, "rows": []}
    )


def test_parity():
    row = parity.compare([np.ones((2, 2))], [np.full((2, 2), 2.0)])
    record = {"settings": {"layers": 30, "width": 576}, "rows": [{"way": "packed", **row}]}
    assert "| packed | 2 | 1.0e+00 | 2 | 5.0e-01 |" in text_figures.parity(figures.table, record)
