"""What a table of `gap` allows to say, and what each missing condition is called."""

import re

import pytest

from jaxrec.experiments import verdict
from tests.experiments import made_up


def sentence(**values):
    return verdict.verdict(made_up.gap_rows(**values)).sentence


def test_a_share_is_told_where_everything_holds():
    found = verdict.verdict(made_up.gap_rows())
    assert found.told
    assert found.sentence == (
        "Tokens close 90.0 % [88.0, 92.0] of what full history adds, for 12.5 % of the FLOPs of a "
        "request; 2.0 KB a user"
    )


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        (
            {"recent": 0.052},
            r"recent is not above popularity \(NDCG@10 0\.0520 \[0\.0500, 0\.0540\] against 0\.05",
        ),
        ({"recent": 0.04, "full": 0.045}, r"recent is not .* and full is not above popularity"),
        (
            {"full": 0.115, "error": 0.02, "compressed": 0.11},
            r"full is not above recent \(gap in NDCG@10 0\.0150 \[-0\.0050, 0\.0350\]\)",
        ),
        (
            {"recent": 0.3, "full": 0.28, "compressed": 0.29, "error": 0.03},
            r"full is not above recent \(gap in NDCG@10 -0\.0200 .*: 10 users are too few to tell",
        ),
        (
            {"full": 0.12, "compressed": 0.11, "error": 0.006},
            r"the interval of the share is wider than 50 points \(NDCG@10 50\.0 % \[20\.0, 80\.0\]",
        ),
        (
            {"full": 0.15, "compressed": 0.16},
            r"full has not learned what it could: compressed, .* closes 120\.0 % \[116\.0, 12",
        ),
    ],
)
def test_what_cannot_be_told_says_why(values, reason):
    found = verdict.verdict(made_up.gap_rows(**values))
    assert not found.told
    assert re.match(f"Cannot tell, because {reason}", found.sentence)
    assert "Tokens close" not in found.sentence
    assert found.title.startswith("Cannot tell: ")
    assert "[" not in found.title


def test_a_title_has_the_reasons_without_figures():
    rows = made_up.gap_rows(recent=0.04, full=0.06, compressed=0.05, error=0.003)
    for row in rows:
        row["still_rising"] = int(row["name"] in ("recent", "full"))
    found = verdict.verdict(rows)
    assert found.title == (
        "Cannot tell: recent is not above popularity, recent and full were still improving when "
        "the training ended"
    )
    assert "still improving when the training ended (raise train.steps)" in found.sentence
    wide = verdict.verdict(made_up.gap_rows(full=0.12, compressed=0.11, error=0.006))
    assert wide.title == "Cannot tell: 10 users are too few"


def test_a_narrow_gap_around_or_below_nothing_says_that_history_does_not_help():
    found = verdict.verdict(made_up.gap_rows(full=0.101, compressed=0.1, error=0.002))
    assert not found.told
    assert found.sentence.startswith(
        "History adds little here, if anything (full - recent NDCG@10 0.0010 [-0.0010"
    )
    worse = sentence(full=0.08, compressed=0.09)
    assert worse.startswith(
        "History does not help here: recent alone is better (full - recent NDCG@10 -0.0200 [-0.0220"
    )
    # but not of models that learned less than popularity knows
    assert sentence(recent=0.04, full=0.041, compressed=0.04).startswith("Cannot tell")


def test_values_that_are_missing_tell_nothing():
    rows = made_up.gap_rows()
    row = next(row for row in rows if row["name"] == "compressed")
    for key in list(row):
        if "_closed" in key:
            row[key] = None
    assert "wider than 50 points" in verdict.verdict(rows).sentence
    for key in list(row):
        if "_gap" in key:
            row[key] = None
    assert "full is not above recent" in verdict.verdict(rows).sentence
    with pytest.raises(KeyError):
        verdict.verdict(rows[:1])


def test_the_reading_follows_the_data():
    rows = made_up.gap_rows()
    for row in rows:  # by one metric there is no gap
        if row["name"] == "compressed":
            row["mrr_gap_low"] = -0.01
    text = verdict.reading(rows)
    assert "By NDCG@10: tokens close 90.0 %" in text
    assert "By MRR: cannot tell, because full is not above recent" in text
    assert "instead of 0.1900 [0.1880, 0.1920]; it reads its tokens." in text
    assert "counters" not in text

    counted = made_up.gap_rows(compressed=0.1, suffix=" + counters")
    text = verdict.reading(made_up.gap_rows(compressed=0.08) + counted)
    assert "that it reads its tokens does not show" in text
    assert "compressed has NDCG@10 0.1000 [0.0980, 0.1020], level with recent + counters" in text
    assert "counters alone" not in text  # the rows do not have it
    # what counters reach is not credited to tokens: no share, whatever the rows are
    _, behind = text.split("With counters, ")
    assert "close" not in behind
    assert "whether tokens add to them does not show" in behind

    pooled = dict(counted[0], name="mean-pooled + counters")
    text = verdict.reading(rows + counted + [pooled])
    assert "level with mean-pooled + counters (0.1000 [0.0980, 0.1020], whose tokens read" in text
    assert "does not show" not in text


def test_returns_are_compared_with_popularity_on_returns():
    rows = made_up.gap_rows()
    returns = made_up.gap_rows(recent=0.045, suffix=", returns")
    text = verdict.reading(rows + returns)
    # 0.05 on all targets: of them recent would be below
    assert (
        "Of planted returns alone, by NDCG@10: cannot tell, because recent, returns is not" in text
    )
    known = next(row for row in rows if row["name"] == "popularity")
    low = {key: value / 10 if isinstance(value, float) else value for key, value in known.items()}
    text = verdict.reading([*rows, low | {"name": "popularity, returns"}, *returns])
    assert "Of planted returns alone, by NDCG@10: tokens close 9" in text


def test_reading_says_what_full_history_lacks_of_the_oracle():
    returns = ", returns"
    rows = [*made_up.gap_rows(), *made_up.gap_rows(suffix=returns)]
    assert "oracle" not in verdict.reading(rows)
    best = {"name": f"oracle{returns}", "ndcg@10": 0.7, "ndcg@10_low": 0.68, "ndcg@10_high": 0.72}
    said = verdict.reading([*rows, best])
    assert (
        "The oracle has NDCG@10 0.7000 [0.6800, 0.7200] of the returns, full history 0.2000" in said
    )
