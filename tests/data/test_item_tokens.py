"""Item texts: composed, tokenized, cut, packed, and refused."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxrec.data import item_tokens as texts
from jaxrec.errors import DataError

COLUMNS = {"title": ["", "Toy Story", " ", "Heat"], "main_genre": ["", "Animation", "", ""]}


@pytest.fixture
def folder(tmp_path):
    """A tokenizer of whole words."""
    tokenizers = pytest.importorskip("tokenizers")
    words = ["<unk>", "title", ":", "Toy", "Story", ",", "main", "genre", "Animation", "Heat"]
    model = tokenizers.models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="<unk>")
    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer.enable_truncation(2)  # as some published files have it: must not cut silently
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    return tmp_path


def test_prompt_and_fields_of_an_item():
    composed = texts.compose(COLUMNS, prompt="Say: ")
    assert composed == [
        "",
        "Say: title: Toy Story, main genre: Animation",
        "",  # an item without text has no prompt either
        "Say: title: Heat",
    ]
    assert texts.compose(COLUMNS, ("main_genre",), "")[1:] == ["main genre: Animation", "", ""]


def test_no_items_table_and_unknown_fields():
    with pytest.raises(DataError, match=r"no item texts: set data\.items_path"):
        texts.compose(None)
    with pytest.raises(DataError, match="'brand' is no text column; there are title, main_genre"):
        texts.compose(COLUMNS, ("title", "brand"))


def test_equal_texts_are_one():
    distinct, index = texts.distinct(["", "a", "b", "a", ""])
    assert distinct == ["a", "b"]
    assert index.tolist() == [-1, 0, 1, 0, -1]


def test_texts_are_cut_and_counted(folder):
    tokenized = texts.Tokenizer(folder, 10).tokenize(["title: Toy Story", "Heat"], 3)
    assert tokenized.tokens.tolist() == [1, 2, 3, 9]
    assert tokenized.offsets.tolist() == [0, 3, 4]
    assert (tokenized.cut, len(tokenized)) == (1, 2)
    whole = texts.Tokenizer(folder, 10).tokenize(["title: Toy Story"], 50)
    assert whole.lengths.tolist() == [4]


def test_a_catalog_is_tokenized_once(folder):
    """The second time tokens come from the file; other texts or limits have a file of their own."""
    tokenizer, catalog = texts.Tokenizer(folder, 10), ["title: Toy Story", "Heat"]
    first = texts.tokenize_once(tokenizer, catalog, 3, folder / "kept")
    (file,) = (folder / "kept").iterdir()
    assert file.name.endswith(".array_record")
    tokenizer._tokenizer = None  # it is not called again
    again = texts.tokenize_once(tokenizer, catalog, 3, folder / "kept")
    np.testing.assert_array_equal(again.tokens, first.tokens)
    np.testing.assert_array_equal(again.offsets, first.offsets)
    assert again.cut == first.cut == 1
    whole = texts.Tokenizer(folder, 10)
    assert texts.tokenize_once(whole, catalog, 9, folder / "kept").cut == 0
    assert len(texts.tokenize_once(whole, catalog[:1], 3, folder / "kept")) == 1
    assert len(list((folder / "kept").iterdir())) == 3
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(DataError, match=r"array_record: damaged"):
        texts.tokenize_once(whole, catalog, 3, folder / "kept")


def test_tokenizer_and_weights_that_do_not_match(folder):
    with pytest.raises(DataError, match="has 10 tokens, the weights beside it have 9"):
        texts.Tokenizer(folder, 9)
    assert texts.Tokenizer(folder, 11).decode([3, 4]) == "Toy Story"  # padded vocabularies are fine


def test_bad_tokenizers(tmp_path, folder):
    with pytest.raises(DataError, match=r"tokenizer\.json: no such file"):
        texts.Tokenizer(tmp_path / "none", 9)
    (folder / "tokenizer.json").write_text("{")
    with pytest.raises(DataError, match=r"tokenizer\.json: not a tokenizer"):
        texts.Tokenizer(folder, 10)


def test_a_text_without_tokens(folder):
    with pytest.raises(DataError, match="text 1 \\(' '\\) has no tokens"):
        texts.Tokenizer(folder, 10).tokenize(["Heat", " "], 5)


@given(
    lengths=st.lists(st.integers(1, 9), min_size=1, max_size=40),
    end=st.sampled_from([None, 99]),
    rows=st.integers(1, 4),
)
def test_packing_keeps_every_token_once(lengths, end, rows):
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    tokenized = texts.TokenizedTexts(np.arange(1, offsets[-1] + 1, dtype=np.int32), offsets, 0)
    which = list(range(0, len(lengths), 2))
    seen = []
    for packed, numbers in texts.pack(tokenized, which, rows, 12, end=end):
        assert packed.tokens.shape == packed.owner.shape == packed.positions.shape
        assert packed.tokens.shape[1] == 12
        assert rows % len(packed.owner) == 0
        assert (packed.owner.max(), packed.owner.min() >= 0) == (len(numbers), True)
        for number, text in enumerate(numbers, 1):
            row, column = np.nonzero(packed.owner == number)
            assert len(set(row)) == 1
            assert (np.diff(column) == 1).all()
            content = tokenized.tokens[offsets[text] : offsets[text + 1]].tolist()
            assert packed.tokens[row, column].tolist() == content + ([end] if end else [])
            assert packed.positions[row, column].tolist() == list(range(len(column)))
        assert not packed.tokens[packed.owner == 0].any()
        seen += numbers
    assert sorted(seen) == which


def test_rows_are_nearly_full():
    """Texts like real ones: computed / present positions."""
    lengths = np.random.default_rng(0).poisson(24, 4000) + 3
    rows = texts.fill_rows(lengths, 256)
    assert sorted(i for row in rows for i in row) == list(range(4000))
    assert 256 * len(rows) / lengths.sum() < 1.02


def test_the_last_batches_have_no_empty_rows():
    tokenized = texts.TokenizedTexts(np.ones(7 * 4, np.int32), np.arange(8) * 4, 0)
    sizes = [len(packed.owner) for packed, _ in texts.pack(tokenized, range(7), 4, 4)]
    assert sizes == [4, 2, 1]
    sizes = [len(packed.owner) for packed, _ in texts.pack(tokenized, range(7), 4, 4, devices=2)]
    assert sizes == [4, 2, 2]


def test_a_text_longer_than_a_row():
    with pytest.raises(ValueError, match="text of 9 tokens does not fit a row of 8"):
        texts.fill_rows(np.asarray([3, 9]), 8)
