"""Training the item tower: texts of a batch, gradients through them, the table made anew."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrec import config as config_lib
from jaxrec.config import Config, LlamaConfig, MeshConfig
from jaxrec.data import item_tokens
from jaxrec.interop import huggingface, item_towers
from jaxrec.items import table, text_table
from jaxrec.layout import SegmentLayout
from jaxrec.model import parameters, recommender, states
from jaxrec.model.initial import starting_from
from jaxrec.nn.item_tower import TOWER
from jaxrec.objective import sampling
from jaxrec.runtime import checkpoint, leaves
from jaxrec.runtime import mesh as mesh_lib
from jaxrec.training import loop, text_batches, text_step
from jaxrec.training import optimizer as optimizer_lib
from jaxrec.training.task import Task
from jaxrec.types import Batch
from tests.interop.folders import tower_folder

ITEMS, USERS = 9, 8
NAMES = ["", "a", "b", "a b", "b a a", "", "a", "a a a a", "b b", "b b b"]  # 5: none, 6: as 1
COLUMNS = {"title": NAMES}
COUNTS = np.arange(ITEMS + 1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tower_folder(tmp_path_factory.mktemp("tower"))


def config_of(folder, **texts):
    config = Config()
    config.layout.segment_size, config.layout.tokens, config.layout.max_segments = 3, 1, 2
    model = config.model
    model.backbone, model.width, model.item_width, model.heads, model.layers = "llama", 8, 6, 2, 1
    model.token_input = "pooled"
    model.dropout = model.embed_dropout = 0.0
    model.attention = "dense"  # less to compile
    model.llama = LlamaConfig(kv_heads=1, ffn_width=12)
    model.texts = dataclasses.replace(
        model.texts, model=folder, prompt="", fields=("title",), max_tokens=12, rows=1, train="full"
    )
    model.texts = dataclasses.replace(model.texts, **texts)
    loss = config.loss
    loss.kind, loss.similarity, loss.temperature = "sampled_softmax", "cosine", 0.1
    loss.negatives, loss.sampling = 8, "uniform"
    loss.false_negative = 1.0  # the vectors of a new tower are nearly the same: all would be masked
    config.train.frozen = ("^item_(embedding|mean|scale)",)
    config.train.batch_size, config.train.steps, config.train.warmup = USERS, 60, 1
    config.train.eval_every, config.train.checkpoint_every, config.train.log_every = 30, 20, 1
    config.train.learning_rate = 1e-2
    return config_lib.validate(config)


def batch_at(step, layout):
    rng = np.random.default_rng(step)
    slots = layout.num_items + 1
    start = rng.integers(0, ITEMS, (USERS, 1))
    items = ((start + np.arange(slots)) % ITEMS + 1).astype(np.int32)  # always the next item
    lengths = np.asarray([[n for n, _ in layout.segments]] * USERS, np.int32)
    times = np.tile(np.arange(slots, dtype=np.int32), (USERS, 1))
    index = np.arange(USERS, dtype=np.int32)
    return Batch(items, times, lengths, np.ones((USERS, slots), np.float32), index, index)


class Run:
    """Everything of a configuration that the tests share."""

    def __init__(self, config, work, devices=1):
        self.config, self.work = config, work
        self.layout = SegmentLayout.from_config(config.layout)
        self.model = recommender.build(config.model, config.loss, self.layout, ITEMS)
        self.tower = item_towers.tower_of(config.model)
        self.mesh = mesh_lib.make_mesh(MeshConfig(data=devices))
        weights = item_towers.tower_weights(config.model, self.tower)
        given = {f"{TOWER}/{name}": x for name, x in leaves.flatten(weights).items()}
        self.init = starting_from(text_batches.with_tower(self.model.init, self.tower), given)
        self.items = text_batches.make_text_items(
            config,
            self.model,
            self.tower,
            columns=COLUMNS,
            counts=COUNTS,
            folder=work / "item_vectors",
            mesh=self.mesh,
        )

    def batches(self, start):
        while True:
            yield batch_at(start, self.layout)
            start += 1

    def fit(self, folder, **more):
        item_vectors = jax.jit(self.model.item_vectors)

        def evaluate(params):
            return {"ndcg@10": float(jnp.abs(item_vectors(params).vectors).sum())}

        arguments = {"batches": self.batches, "evaluate": evaluate} | more
        task = Task(self.init, self.model.loss, texts=self.items)
        return loop.fit(self.config, folder, task, mesh=self.mesh, **arguments)


@pytest.fixture(scope="module")
def run(folder, tmp_path_factory):
    return Run(config_of(folder), tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def params(run):
    return jax.jit(run.init)(jax.random.key(0))


def alone(run, params, item):
    """The vector of an item by the definition: its text in a row of its own, the token behind."""
    folder = run.config.model.texts.model
    tokenizer = item_tokens.Tokenizer(folder, run.tower.text.vocabulary)
    words = tokenizer.tokenize([item_tokens.compose(COLUMNS, ("title",), "")[item]], 12).tokens
    decoder = params["decoder"]
    x = np.concatenate([decoder["embedding"][words], params["token"][None]])[None]
    ones = np.ones(x.shape[:2], np.int32)
    y, _ = run.tower.text.network.apply({"params": decoder}, x, ones, np.cumsum(ones, 1) - 1)
    return np.asarray(y[0, -1])


def test_a_batch_has_every_text_once_and_vectors_are_those_of_texts_alone(run, params):
    batch = batch_at(0, run.layout)
    with_texts = run.items.put(0, batch)
    texts = np.unique(np.asarray(with_texts.owner))
    assert len(texts) == 1 + 7  # padding, and the distinct texts of eight items
    # an item is the same row everywhere, two items with one text are two rows of one text
    text_of_row = np.asarray(with_texts.text_of_row)
    rows = dict(zip(batch.items.flat, np.asarray(with_texts.batch.items).flat, strict=True))
    assert len(set(rows.values())) == ITEMS
    assert text_of_row[rows[1]] == text_of_row[rows[6]] > 0
    assert text_of_row[rows[5]] == text_of_row[0] == 0
    vectors = np.asarray(text_step.encode(run.tower, params[TOWER], with_texts))
    for item in (1, 2, 3, 4, 6, 7, 8, 9):
        expected = alone(run, params[TOWER], item)
        np.testing.assert_allclose(vectors[text_of_row[rows[item]]], expected, atol=1e-5)
    assert not vectors[0].any()
    again = run.items.put(0, batch)
    jax.tree.map(np.testing.assert_array_equal, with_texts, again)  # a function of step and batch
    other = run.items.put(1, batch)
    assert (np.asarray(other.negatives.ids) != np.asarray(with_texts.negatives.ids)).any()
    assert jax.tree.map(jnp.shape, other) == jax.tree.map(jnp.shape, with_texts)


def test_any_batch_fits_the_rows():
    """The bound on rows holds for the worst lengths; no chunk is used in vain."""
    rng = np.random.default_rng(0)
    for longest in (3, 9, 20):
        lengths = rng.integers(1, longest + 1, 60)
        lengths[::2] = longest
        offsets = np.concatenate([[0], np.cumsum(lengths)])
        tokens = item_tokens.TokenizedTexts(np.ones(offsets[-1], np.int32), offsets, 0)
        text_of_item = np.arange(-1, 60)
        items = rng.permutation(60)[:50].reshape(5, 10).astype(np.int32) + 1
        empty = np.zeros(0, np.int32)
        batch = Batch(items, items, items, items, empty, empty)
        drawn = sampling.Negatives(np.asarray([1, 60, 7], np.int32), np.zeros(3, np.float32))
        shape = text_batches.Shape(2, 32, longest + 1)
        packed = text_batches.attach(
            batch, drawn, text_of_item=text_of_item, tokens=tokens, shape=shape, end=99
        )
        texts = np.unique(np.concatenate([items.ravel(), drawn.ids])) - 1
        assert (packed.owner > 0).sum() == (lengths[texts] + 1).sum()
        assert (packed.tokens == 99).sum() == len(texts) == packed.owner.max()
        assert not packed.owner[packed.used :].any()
        assert packed.owner[: packed.used].any(axis=(1, 2)).all()


def test_gradients_are_those_of_encoding_inside_the_loss(run, params):
    """The whole chain by automatic differentiation, in one piece, against the step's two."""
    batch = run.items.put(0, batch_at(0, run.layout))
    loss = run.model.loss

    def whole(params):
        flat = [x.reshape(-1, x.shape[-1]) for x in (batch.tokens, batch.owner, batch.positions)]
        vectors = run.tower.vectors(params[TOWER], *flat, len(batch.text_of_row))
        embedding = jnp.concatenate([jnp.zeros_like(vectors[:1]), vectors])[batch.text_of_row]
        value, weight, _ = loss(
            {k: v for k, v in params.items() if k != TOWER},
            batch.batch,
            rng=jax.random.key(3),
            train=True,
            negatives=batch.negatives,
            rows=table.ItemRows(embedding),
        )
        return value / weight

    value, expected = jax.jit(jax.value_and_grad(whole))(params)
    train = dataclasses.replace(run.config.train, grad_accum_steps=2)
    update = text_step.TextUpdate(
        loss, run.tower, optimizer_lib.adamw(train), frozenset(), train, run.mesh
    )
    with jax.set_mesh(run.mesh):
        gradient = jax.jit(update.gradient)(params, batch, jax.random.key(3), None)
    gradients = gradient.tree
    np.testing.assert_allclose(gradient.loss, value, rtol=1e-5)
    assert gradient.metrics["positions_per_word"] >= 1
    for name, leaf in leaves.flatten(gradients[TOWER]).items():
        theirs = leaves.flatten(expected[TOWER])[name]
        np.testing.assert_allclose(leaf, theirs, atol=2e-5, err_msg=name)
        assert np.asarray(leaf).any(), name  # it reaches every part of the tower
    tokens = (g["compressor"]["tokens"] for g in (gradients, expected))
    np.testing.assert_allclose(*tokens, atol=2e-5)
    assert not np.asarray(gradients["item"]["embedding"]).any()


@pytest.mark.slow
def test_training_resumes_and_leaves_a_table_of_its_tower(run, tmp_path):
    """Losses, parameters and table of a run that was killed are those of one that was not."""

    class Killed(BaseException):
        pass

    def killed(start):
        for step, batch in enumerate(run.batches(start), start):
            if step == 50:
                raise Killed
            yield batch

    result = run.fit(tmp_path / "whole")
    with pytest.raises(Killed):
        run.fit(tmp_path / "killed", batches=killed)
    run.fit(tmp_path / "killed")
    assert result.stopped == "finished"
    like = jax.eval_shape(run.model.init, jax.random.key(0))
    tower_like = jax.eval_shape(run.tower.init, jax.random.key(0))
    kept = {}
    for name in ("whole", "killed"):
        checkpoints = tmp_path / name / "checkpoints"
        kept[name] = [
            checkpoint.load_params(checkpoints, like, "latest")[1],  # without the tower
            checkpoint.load_params(checkpoints, tower_like, "latest", TOWER)[1],
        ]
    jax.tree.map(np.testing.assert_array_equal, kept["whole"], kept["killed"])
    params, tower = kept["whole"]
    for item in (3, 7):
        np.testing.assert_allclose(
            params["item"]["embedding"][item], alone(run, tower, item), atol=1e-5
        )
    # items without text stand at the mean; the equality of states holds as for ids
    np.testing.assert_array_equal(params["item"]["embedding"][5], params["item"]["mean"])
    batch = batch_at(11, run.layout)
    masked = run.model.predict(params, batch)
    cached = states.predict_cached(run.model, params, batch)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a[:, 7:], b[:, 7:], atol=1e-5), masked, cached
    )
    made = list((run.work / "item_vectors" / "trained").iterdir())
    assert len(made) == 1  # vectors of earlier parameters are gone


@pytest.mark.slow
def test_the_loss_falls(folder, tmp_path):
    """A tower of six numbers per item needs some hundred steps to tell nine items apart."""
    config = config_of(folder)
    config.train.steps = config.train.eval_every = config.train.checkpoint_every = 400
    Run(config, tmp_path).fit(tmp_path / "run")
    text = (tmp_path / "run" / "metrics.jsonl").read_text()
    lines = [json.loads(line) for line in text.splitlines()]
    values = [line["train/loss"] for line in lines if "train/loss" in line]
    assert np.mean(values[-50:]) < 0.8 * np.mean(values[:50])


def test_adapters_leave_the_weights_of_the_tower_as_they_are(folder, tmp_path):
    config = config_of(folder, train="lora", lora_rank=2)
    config.train.weight_decay = 0.1
    run = Run(config, tmp_path)
    run.fit(tmp_path / "run")
    like = jax.eval_shape(run.tower.init, jax.random.key(0))
    _, trained = checkpoint.load_params(tmp_path / "run" / "checkpoints", like, "latest", TOWER)
    _, published = huggingface.load(folder)
    before = leaves.flatten(published)
    moved = leaves.flatten(trained["decoder"])
    for name, leaf in before.items():
        if not name.startswith("head"):
            np.testing.assert_array_equal(moved[name], leaf)
    adapters = [name for name in moved if name.endswith("lora_b")]
    assert len(adapters) == 7
    assert all(moved[name].any() for name in adapters)
    # the moments of what stands still take no memory
    is_trained = parameters.is_trained(config)
    assert [n for n in leaves.flatten({TOWER: trained}) if is_trained(n)] == [
        *(f"{TOWER}/decoder/{n}" for n in moved if "lora_" in n),
        f"{TOWER}/token",
    ]
    # exported, it is a plain folder that encodes the same
    assert (
        item_towers.main(
            [str(tmp_path / "run"), f"--output={tmp_path / 'out'}", "--checkpoint=latest"]
        )
        == 0
    )
    again = dataclasses.replace(
        config.model.texts, model=str(tmp_path / "out"), train="frozen", pooling="token"
    )
    plain = dataclasses.replace(config.model, texts=again)
    encoded = item_towers.encode_catalog(plain, COLUMNS, tmp_path / "vectors")
    like = jax.eval_shape(run.model.init, jax.random.key(0))
    _, params = checkpoint.load_params(tmp_path / "run" / "checkpoints", like, "latest")
    np.testing.assert_allclose(encoded.vectors[1:5], params["item"]["embedding"][1:5], atol=1e-5)
    # a cold item gets its vector from the exported tower
    more = text_table.append_items(
        params, item_towers.encode_catalog(plain, {"title": ["a b"]}, tmp_path / "vectors").vectors
    )
    embedding = more["item"]["embedding"]
    np.testing.assert_allclose(embedding[-1], params["item"]["embedding"][3], atol=1e-5)
