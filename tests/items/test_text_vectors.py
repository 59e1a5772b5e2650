"""The catalog's vectors on disk: found again, gone on with, added to, never mixed up."""

import jax
import numpy as np
import pytest

from jaxrec.config import LlamaConfig, MeshConfig, ModelConfig
from jaxrec.data import item_tokens
from jaxrec.errors import DataError
from jaxrec.items import text_vectors
from jaxrec.nn.item_tower import ItemTower
from jaxrec.nn.text_model import TextModel
from jaxrec.runtime.mesh import make_mesh

CONFIG = ModelConfig(backbone="llama", width=4, heads=1, layers=1, llama=LlamaConfig())
TOWER = ItemTower(TextModel(CONFIG, 30), "mean")
TEXTS = ["", "a b", "c", "", "a b", "d e f", "g"]


class Letters:
    """A tokenizer of single letters."""

    def __init__(self):
        self.texts = []

    def tokenize(self, texts, longest):
        self.texts += texts
        ids = [[ord(c) - 96 for c in text if c != " "] for text in texts]
        cut = sum(len(i) > longest for i in ids)
        ids = [i[:longest] for i in ids]
        offsets = np.concatenate([[0], np.cumsum([len(i) for i in ids])])
        flat = np.asarray([i for text in ids for i in text], np.int32)
        return item_tokens.TokenizedTexts(flat, offsets, cut)


@pytest.fixture(scope="module")
def params():
    return TOWER.init(jax.random.key(0))


def encode(params, folder, given=TEXTS, tokenizer=None, **more):
    settings = {"longest": 2, "rows": 2, "row_length": 8, "part": 2} | more
    return text_vectors.encode(TOWER, params, tokenizer or Letters(), given, folder, **settings)


def test_every_item_gets_its_text_s_vector(params, tmp_path):
    said = []
    encoded = encode(params, tmp_path, say=said.append)
    assert (encoded.new, encoded.known, encoded.without_text, encoded.cut) == (4, 0, 2, 1)
    assert encoded.tokens == 2 + 1 + 2 + 1
    assert encoded.positions % 16 == 0
    np.testing.assert_array_equal(encoded.vectors[[0, 3]], np.zeros((2, 4)))
    np.testing.assert_array_equal(encoded.vectors[1], encoded.vectors[4])
    assert len({row.tobytes() for row in encoded.vectors}) == 5
    alone = encode(params, tmp_path / "other", ["c"]).vectors[0]
    np.testing.assert_allclose(encoded.vectors[2], alone, atol=1e-6)
    assert "4 of 4 encoded" in said[-1]


def test_known_texts_are_not_encoded_again(params, tmp_path):
    """An interrupted run goes on; new items cost only their own texts."""
    first = encode(params, tmp_path, TEXTS[:3])
    letters = Letters()
    whole = encode(params, tmp_path, [*TEXTS, "z"], letters)
    assert (first.new, whole.known, whole.new) == (2, 2, 3)
    assert sorted(letters.texts) == ["d e f", "g", "z"]
    np.testing.assert_array_equal(whole.vectors[:3], first.vectors)
    again = encode(params, tmp_path, [*TEXTS, "z"])
    assert (again.new, again.known, again.positions) == (0, 5, 0)
    np.testing.assert_array_equal(again.vectors, whole.vectors)


def test_other_weights_or_settings_are_other_vectors(params, tmp_path):
    encode(params, tmp_path)
    other = jax.tree.map(lambda x: x + 0.01, params)
    assert encode(other, tmp_path).new == 4
    assert encode(params, tmp_path, longest=3).new == 4
    assert encode(params, tmp_path).new == 0
    assert len(list(tmp_path.iterdir())) == 3


def test_devices_share_the_rows(params, tmp_path):
    mesh = make_mesh(MeshConfig(data=2), jax.devices()[:2])
    one = encode(params, tmp_path / "one")
    two = encode(params, tmp_path / "two", mesh=mesh)
    np.testing.assert_allclose(one.vectors, two.vectors, atol=1e-6)
    with pytest.raises(ValueError, match="rows=3: must be a multiple of the 2 devices"):
        encode(params, tmp_path / "two", mesh=mesh, rows=3)


def test_damaged_files_are_named(params, tmp_path):
    encode(params, tmp_path)
    file = next(tmp_path.glob("*/part-00001.npz"))
    with np.load(file) as saved:
        arrays = dict(saved)
    arrays["vectors"][0, 0] += 1
    np.savez(file, **arrays)
    with pytest.raises(DataError, match=r"part-00001\.npz: not what was written"):
        encode(params, tmp_path)
    file.write_bytes(file.read_bytes()[:40])
    with pytest.raises(DataError, match=r"part-00001\.npz: damaged"):
        encode(params, tmp_path)


def test_a_catalog_without_any_text(params, tmp_path):
    with pytest.raises(DataError, match="no item has any text"):
        encode(params, tmp_path, ["", ""])
