"""Item towers in folders: read, run over a catalog, refused where they do not fit."""

import dataclasses

import jax
import numpy as np
import pytest

from jaxrec.config import Config, validate
from jaxrec.errors import ConfigError, DataError
from jaxrec.interop import hllm as published
from jaxrec.interop import huggingface, item_towers
from jaxrec.items import text_table
from jaxrec.model.initial import starting_from
from tests.interop.folders import tower_folder
from tests.items.text_items import CONFIG, build


def with_texts(folder, **more):
    texts = {"max_tokens": 8, "rows": 1} | more
    return dataclasses.replace(
        CONFIG, texts=dataclasses.replace(CONFIG.texts, model=folder, **texts)
    )


def test_a_catalog_is_encoded_with_the_folder_s_own_tokenizer(tmp_path):
    config = with_texts(tower_folder(tmp_path / "tower"))
    said = []
    columns = {"title": ["", "a", "b", "a"], "noise": ["x"] * 4}
    encoded = item_towers.encode_catalog(config, columns, tmp_path / "vectors", say=said.append)
    assert encoded.vectors.shape == (4, 6)
    np.testing.assert_array_equal(encoded.vectors[1], encoded.vectors[3])
    assert np.abs(encoded.vectors[1] - encoded.vectors[2]).max() > 1e-4
    assert "2 encoded, 0 known, 0 cut to 8 tokens, 0 items without text" in said[-1]


def test_catalogs_that_cannot_be_encoded(tmp_path):
    folder, columns = tower_folder(tmp_path / "tower"), {"title": ["", "a"]}
    with pytest.raises(DataError, match="no item texts"):
        item_towers.encode_catalog(with_texts(folder), None, tmp_path)
    with pytest.raises(ConfigError, match=r"item_width=5: vectors of .* have 6 numbers"):
        item_towers.encode_catalog(
            dataclasses.replace(with_texts(folder), item_width=5), columns, tmp_path
        )
    with pytest.raises(ConfigError, match=r"max_tokens=99: .* reads 16 tokens"):
        item_towers.encode_catalog(with_texts(folder, max_tokens=99), columns, tmp_path)
    with pytest.raises(ConfigError, match=r"pooling='token'.*no trained embedding token"):
        item_towers.encode_catalog(with_texts(folder, pooling="token"), columns, tmp_path)


def test_a_published_tower_brings_its_token_and_scale(tmp_path):
    """`hllm.npz` beside the weights: the token reads texts, the scale starts the logits."""
    folder = tower_folder(tmp_path / "tower")
    assert item_towers.scale_leaf(folder) == {}
    token = np.arange(6, dtype=np.float32)
    published.save_extras(folder, token, 20.0)
    config = with_texts(folder, pooling="token", standardize=False)
    encoded = item_towers.encode_catalog(config, {"title": ["", "a"]}, tmp_path / "vectors")
    _, decoder = huggingface.load(folder)
    tokens = np.asarray([[1, 2, 3]])  # title : a
    x = np.concatenate([decoder["embedding"][tokens], token[None, None]], axis=1)
    ones = np.ones((1, 4), np.int32)
    network = item_towers.tower_of(config).text.network
    y, _ = network.apply({"params": decoder}, x, ones, np.arange(4)[None])
    np.testing.assert_allclose(encoded.vectors[1], y[0, -1], atol=1e-5)
    given = text_table.leaves(encoded.vectors, standardize=False)
    np.testing.assert_array_equal(given["item/embedding"], encoded.vectors)
    assert (given["item/mean"] == 0).all()
    assert (given["item/scale"] == 1).all()
    assert item_towers.scale_leaf(folder)["logit_scale"] == pytest.approx(np.log(20.0))
    published.save_extras(folder, token[:3])
    with pytest.raises(ConfigError, match=r"its embedding token has shape \(3,\)"):
        item_towers.encode_catalog(config, {"title": ["", "a"]}, tmp_path / "vectors")


def test_a_missing_embedding_token_is_drawn_like_a_token_of_the_vocabulary(tmp_path):
    config = with_texts(tower_folder(tmp_path / "tower"), train="lora", lora_rank=2)
    tower = item_towers.tower_of(config)
    params = item_towers.tower_weights(config, tower)
    embedding = params["decoder"]["embedding"]
    distance = np.abs((params["token"] - embedding.mean(0)) / embedding.std(0))
    assert 0 < distance.max() < 4
    assert tower.text.config.llama.lora_rank == 2
    plain = dataclasses.replace(config.texts, train="frozen")
    assert item_towers.tower_of(dataclasses.replace(config, texts=plain)).pooling == "mean"


def test_a_user_tower_starts_from_a_language_model(tmp_path):
    folder = tower_folder(tmp_path / "user", width=8)
    config = dataclasses.replace(CONFIG, heads=1)
    model = build(config)
    params = jax.jit(starting_from(model.init, huggingface.encoder_leaves(folder)))(
        jax.random.key(1)
    )
    _, decoder = huggingface.load(folder)
    encoder = params["compressor"]["encoder"]
    np.testing.assert_array_equal(
        encoder["layers"]["down"]["kernel"], decoder["layers"]["down"]["kernel"]
    )
    np.testing.assert_array_equal(encoder["final_norm"]["scale"], decoder["final_norm"]["scale"])
    other = build(dataclasses.replace(config, layers=3))
    with pytest.raises(ValueError, match="layers/query/kernel has shape"):
        starting_from(other.init, huggingface.encoder_leaves(folder))(jax.random.key(1))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"train.frozen": ("^item_tower", "(")}, "'(' is no regular expression"),
        ({"model.texts.user_model": "x", "model.backbone": "hstu"}, "'llama' is needed"),
        ({"model.texts.pooling": "max"}, "allowed are mean, token"),
        ({"model.texts.max_tokens": 0}, "model.texts.max_tokens=0"),
        ({"model.texts.train": "both"}, "allowed are frozen, full, lora"),
        ({"model.texts.train": "full", "model.texts.model": ""}, "there is no item tower"),
        ({"model.texts.train": "lora"}, "would encode the whole catalog in every step"),
        (
            {"model.texts.train": "full", "loss.kind": "bce", "loss.negative_groups": 2},
            "encodes one set of negatives for a step",
        ),
        ({"train.table_update": "adam", "loss.kind": "bce"}, "model.texts.model needs 'adamw'"),
    ],
)
def test_configurations_that_cannot_work(change, message):
    config = Config()
    config.model.texts.model = "folder"
    assert validate(config) is config
    for key, value in change.items():
        *path, name = key.split(".")
        node = config
        for part in path:
            node = getattr(node, part)
        setattr(node, name, value)
    with pytest.raises(ConfigError) as error:
        validate(config)
    assert message in str(error.value)
