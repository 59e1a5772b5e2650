"""Items from texts: the frozen table, what starts from it, new items, pretrained user towers."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxrec.config import (
    Config,
    LlamaConfig,
    LossConfig,
    MeshConfig,
    ModelConfig,
    TextsConfig,
    TrainConfig,
    validate,
)
from jaxrec.errors import ConfigError, DataError
from jaxrec.interop import hllm as published
from jaxrec.interop import huggingface, towers
from jaxrec.layout import SegmentLayout
from jaxrec.model import recommender, states
from jaxrec.model.parameters import has_item_rows
from jaxrec.nn.text_model import TextModel
from jaxrec.runtime import mesh as mesh_lib
from jaxrec.training import optimizer as optimizer_lib
from jaxrec.types import Batch
from tests.nn import parity

LAYOUT = SegmentLayout.stream(3, 2, 2)
USER = LlamaConfig(kv_heads=1, ffn_width=12)
CONFIG = ModelConfig(
    backbone="llama",
    width=8,
    item_width=6,
    heads=2,
    layers=2,
    dropout=0.0,
    embed_dropout=0.0,
    llama=USER,
    texts=TextsConfig(model="some/folder", prompt="", fields=("title",)),
)
LOSS = LossConfig(similarity="cosine", temperature=0.1)
RNG = np.random.default_rng(0)
VECTORS = (3 + 2 * RNG.standard_normal((parity.ITEMS + 1, 6))).astype(np.float32)
VECTORS[[0, 4]] = 0  # padding, and an item without text


def build(config=CONFIG):
    return recommender.build(config, LOSS, LAYOUT, parity.ITEMS)


@pytest.fixture(scope="module")
def params():
    init = towers.starting_from(build().init, towers.table_leaves(VECTORS))
    return jax.jit(init)(jax.random.key(0))


def batch_of():
    items, lengths, times = parity.histories(LAYOUT)
    items = np.concatenate([items, items[:, :1]], axis=1)
    zeros = np.zeros(len(items), np.int32)
    return Batch(items, times, lengths, np.ones(items.shape, np.float32), zeros, zeros)


def test_vectors_are_brought_to_one_scale():
    given = towers.table_leaves(VECTORS)
    rows = (given["item_embedding"] - given["item_mean"]) * given["item_scale"]
    np.testing.assert_array_equal(rows[[0, 4]], np.zeros((2, 6)))  # at the mean: neutral
    present = np.delete(rows, [0, 4], axis=0)
    np.testing.assert_allclose(present.mean(0), 0, atol=1e-6)
    np.testing.assert_allclose(present.std(0), 1, rtol=1e-5)
    constant = VECTORS.copy()
    constant[:, 2] = 5.0
    assert towers.standards(constant)[1][2] == 0


def test_a_state_holds_for_text_items(params):
    """Cached and masked predictions agree, as for ids."""
    model, batch = build(), batch_of()
    whole = np.asarray(model.predict(params, batch))
    cached = np.asarray(states.predict_cached(model, params, batch))
    np.testing.assert_allclose(cached[:, 7:], whole[:, 7:], atol=1e-5)


def test_training_moves_everything_but_the_vectors(params):
    config = TrainConfig(frozen=("^item_(embedding|mean|scale)",), weight_decay=0.1, warmup=1)
    optimizer = optimizer_lib.adamw(config)
    model, batch = build(), batch_of()
    state = optimizer.init(params)
    assert (
        sum(x.size for x in jax.tree.leaves(state))
        < 2
        * sum(
            x.size
            for name, x in params.items()
            if not name.startswith("item_e")
            for x in jax.tree.leaves(x)
        )
        + 10
    )

    @jax.jit
    def step(params, state):
        grads = jax.grad(lambda p: model.loss(p, batch)[0])(params)
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), grads

    moved, grads = step(params, state)
    assert not np.asarray(grads["item_embedding"]).any()
    for name in ("item_embedding", "item_mean", "item_scale"):
        np.testing.assert_array_equal(moved[name], params[name])
    kernel = "item_projection", "kernel"
    assert np.abs(moved[kernel[0]][kernel[1]] - params[kernel[0]][kernel[1]]).max() > 0


def test_new_items_are_scored_by_their_text(params):
    """A new item with an old item's text is scored like it; nothing else moves."""
    model = build()
    new = np.stack([VECTORS[7], np.zeros(6, np.float32)])
    more = towers.append_items(params, new)
    table, old = np.asarray(model.item_table(more)), np.asarray(model.item_table(params))
    assert len(table) == parity.ITEMS + 3
    name = "item_embedding"
    np.testing.assert_array_equal(more[name][: parity.ITEMS + 1], params[name])
    np.testing.assert_array_equal(more[name][-2:], params[name][np.array([7, 4])])
    # a matrix product of another height may be summed in another order
    np.testing.assert_allclose(table[: parity.ITEMS + 1], old, atol=1e-6)
    np.testing.assert_allclose(table[-2:], old[[7, 4]], atol=1e-6)
    with pytest.raises(ValueError, match=r"shape \(2, 5\): the table has rows of 6"):
        towers.append_items(params, new[:, :5])


def test_given_leaves_arrive_on_every_device():
    mesh = mesh_lib.make_mesh(MeshConfig(data=8))
    init = towers.starting_from(build().init, towers.table_leaves(VECTORS))
    like = mesh_lib.abstract(mesh, lambda: init(jax.random.key(0)), has_item_rows)
    placed = mesh_lib.create(lambda: init(jax.random.key(0)), like)
    assert len(placed["item_embedding"].addressable_shards) == 8
    for shard in placed["item_embedding"].addressable_shards:
        np.testing.assert_array_equal(shard.data[7], VECTORS[7])


def test_given_leaves_that_do_not_fit_are_all_listed():
    given = {"item_embedding": VECTORS[:3], "nothing": VECTORS}
    with pytest.raises(ValueError, match="nothing: not in the model") as error:
        towers.starting_from(build().init, given)(jax.random.key(0))
    assert "item_embedding has shape (3, 6), the model's is (12, 6)" in str(error.value)


def tower_folder(folder, width=6):
    """A tiny language model with a tokenizer of two words, as a Hugging Face folder."""
    pytest.importorskip("safetensors")
    tokenizers = pytest.importorskip("tokenizers")
    config = ModelConfig(
        backbone="llama", width=width, heads=1, layers=2, llama=dataclasses.replace(USER)
    )
    model = TextModel(config, 8, context=16)
    huggingface.save(folder, model, model.init(jax.random.key(0)))
    words = tokenizers.models.WordLevel({"?": 0, "title": 1, ":": 2, "a": 3, "b": 4}, unk_token="?")
    tokenizer = tokenizers.Tokenizer(words)
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer.save(str(folder / "tokenizer.json"))
    return str(folder)


def with_texts(folder, **more):
    texts = {"max_tokens": 8, "rows": 1} | more
    return dataclasses.replace(
        CONFIG, texts=dataclasses.replace(CONFIG.texts, model=folder, **texts)
    )


def test_a_catalog_is_encoded_with_the_folder_s_own_words(tmp_path):
    config = with_texts(tower_folder(tmp_path / "tower"))
    said = []
    columns = {"title": ["", "a", "b", "a"], "noise": ["x"] * 4}
    found = towers.encode_catalog(config, columns, tmp_path / "vectors", say=said.append)
    assert found.vectors.shape == (4, 6)
    np.testing.assert_array_equal(found.vectors[1], found.vectors[3])
    assert np.abs(found.vectors[1] - found.vectors[2]).max() > 1e-4
    assert "2 encoded, 0 known, 0 cut to 8 words, 0 items without text" in said[-1]


def test_catalogs_that_cannot_be_encoded(tmp_path):
    folder, columns = tower_folder(tmp_path / "tower"), {"title": ["", "a"]}
    with pytest.raises(DataError, match="no item texts"):
        towers.encode_catalog(with_texts(folder), None, tmp_path)
    with pytest.raises(ConfigError, match=r"item_width=5: vectors of .* have 6 numbers"):
        towers.encode_catalog(
            dataclasses.replace(with_texts(folder), item_width=5), columns, tmp_path
        )
    with pytest.raises(ConfigError, match=r"max_tokens=99: .* reads 16 words"):
        towers.encode_catalog(with_texts(folder, max_tokens=99), columns, tmp_path)
    with pytest.raises(ConfigError, match=r"pooling='token'.*no trained embedding token"):
        towers.encode_catalog(with_texts(folder, pooling="token"), columns, tmp_path)


def test_a_published_tower_brings_its_token_and_scale(tmp_path):
    """`towers.npz` beside the weights: the token reads texts, the scale starts the logits."""
    folder = tower_folder(tmp_path / "tower")
    assert towers.scale_leaf(folder) == {}
    token = np.arange(6, dtype=np.float32)
    published.save_extras(folder, token, 20.0)
    config = with_texts(folder, pooling="token", standardize=False)
    found = towers.encode_catalog(config, {"title": ["", "a"]}, tmp_path / "vectors")
    _, decoder = huggingface.load(folder)
    words = np.asarray([[1, 2, 3]])  # title : a
    x = np.concatenate([decoder["embedding"][words], token[None, None]], axis=1)
    ones = np.ones((1, 4), np.int32)
    network = towers.tower_of(config).text.network
    y, _ = network.apply({"params": decoder}, x, ones, np.arange(4)[None])
    np.testing.assert_allclose(found.vectors[1], y[0, -1], atol=1e-5)
    given = towers.table_leaves(found.vectors, standardize=False)
    np.testing.assert_array_equal(given["item_embedding"], found.vectors)
    assert (given["item_mean"] == 0).all()
    assert (given["item_scale"] == 1).all()
    assert towers.scale_leaf(folder)["logit_scale"] == pytest.approx(np.log(20.0))
    published.save_extras(folder, token[:3])
    with pytest.raises(ConfigError, match=r"its embedding token has shape \(3,\)"):
        towers.encode_catalog(config, {"title": ["", "a"]}, tmp_path / "vectors")


def test_a_token_that_is_not_there_is_drawn_like_a_word(tmp_path):
    config = with_texts(tower_folder(tmp_path / "tower"), train="lora", lora_rank=2)
    tower = towers.tower_of(config)
    params = towers.tower_weights(config, tower)
    words = params["decoder"]["embedding"]
    apart = np.abs((params["token"] - words.mean(0)) / words.std(0))
    assert 0 < apart.max() < 4
    assert tower.text.config.llama.lora_rank == 2
    plain = dataclasses.replace(config.texts, train="frozen")
    assert towers.tower_of(dataclasses.replace(config, texts=plain)).pooling == "mean"


def test_a_user_tower_starts_from_a_language_model(tmp_path):
    folder = tower_folder(tmp_path / "user", width=8)
    config = dataclasses.replace(CONFIG, heads=1)
    model = build(config)
    params = jax.jit(towers.starting_from(model.init, towers.user_leaves(folder)))(
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
        towers.starting_from(other.init, towers.user_leaves(folder))(jax.random.key(1))


def test_adapters_are_trained_instead_of_what_they_adapt(params):
    config = dataclasses.replace(CONFIG, llama=dataclasses.replace(USER, lora_rank=2))
    model = build(config)
    init = towers.starting_from(model.init, towers.table_leaves(VECTORS))
    adapted = jax.jit(init)(jax.random.key(0))
    grads = jax.grad(lambda p: model.loss(p, batch_of())[0])(adapted)
    layer = grads["compressor"]["encoder"]["layers"]["query"]
    assert not np.asarray(layer["kernel"]).any()
    assert np.asarray(layer["lora_b"]).any()
    without = jnp.abs(model.predict(adapted, batch_of())).max()
    assert without > 0


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
