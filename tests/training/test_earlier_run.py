"""A run that begins with the parameters of an earlier one (`train.init_from`)."""

import dataclasses
import shutil

import jax
import numpy as np
import pytest

from jaxrec.config import Config, validate
from jaxrec.errors import ConfigError, WorkdirError
from jaxrec.runtime import checkpoint, leaves
from jaxrec.session import CHECKPOINTS, Session
from jaxrec.training import earlier_run

SEGMENT, TOKENS, SEGMENTS = 5, 2, 3


def make_config(mode="compressed", **values):
    config = Config()
    config.data.dataset = "synthetic"
    config.data.min_item_events = 1
    synthetic = config.data.synthetic
    synthetic.users, synthetic.items, synthetic.events, synthetic.gap = 16, 40, 30, 12
    synthetic.interests = 4
    config.layout.mode, config.layout.tokens = mode, TOKENS
    config.layout.segment_size, config.layout.max_segments = SEGMENT, SEGMENTS
    model = config.model
    model.backbone, model.sasrec.position_bias = "sasrec", True
    model.width, model.heads, model.layers = 8, 2, 1
    if mode == "compressed":
        model.token_input, model.token_distance = "parts", True
    config.train.steps, config.train.batch_size, config.train.ema = 2, 4, 0.5
    config.mesh.data = 1
    for key, value in values.items():
        *groups, name = key.split("__")
        parent = config
        for group in groups:
            parent = getattr(parent, group)
        setattr(parent, name, value)
    return config


@pytest.fixture(scope="module")
def full(tmp_path_factory):
    """The folder of a trained run with full history."""
    folder = tmp_path_factory.mktemp("runs") / "full"
    Session(make_config("full"), folder).fit()
    return folder


@pytest.fixture(scope="module")
def compressed(full, tmp_path_factory):
    """(folder, configuration) of a run that began with a copy of it."""
    folder = tmp_path_factory.mktemp("more")
    shutil.copytree(full, folder / "there")
    config = make_config(train__init_from=str(folder / "there"))
    Session(config, folder / "run").fit()
    return folder / "run", config


def stored(folder, config):
    """Path -> parameter of the run's best checkpoint: the averaged ones."""
    like = jax.eval_shape(Session(config, folder).model.init, jax.random.key(0))
    return leaves.flatten(checkpoint.load_params(folder / CHECKPOINTS, like)[1])


def begun(session):
    """Path -> parameter that a new run of the session begins with."""
    return leaves.flatten(jax.device_get(jax.jit(session.init())(jax.random.key(7))))


def test_a_compressed_model_begins_with_what_full_history_learned(full, tmp_path, capsys):
    old = stored(full, make_config("full"))
    session = Session(make_config(train__init_from=str(full)), tmp_path)
    new = begun(session)
    fresh = leaves.flatten(jax.device_get(session.fresh_params(jax.random.key(7))))
    of_tokens = {path for path in new if path not in old}
    assert {path.rpartition("/")[2] for path in of_tokens} == {
        *("tokens", "query", "offset", "age", "parts")
    }
    for path in of_tokens:
        np.testing.assert_array_equal(new[path], fresh[path], path)
    tables = [path for path in old if old[path].shape != new[path].shape]
    assert {path.rpartition("/")[2] for path in tables} == {"positions", "distance"}
    for path in old:
        first = tuple(slice(size) for size in new[path].shape)
        np.testing.assert_array_equal(new[path], np.asarray(old[path])[first], path)
    line = capsys.readouterr().err
    assert f"parameters of {full}, step 2: {len(old)} of {len(new)} are taken over" in line
    assert all(path in line for path in of_tokens)


def test_tables_that_are_too_short_and_those_of_tokens_begin_anew(compressed, tmp_path):
    folder, _ = compressed
    back = make_config("full", train__init_from=str(folder))
    session = Session(back, tmp_path / "back")
    taken, line = earlier_run.read(back, session.model, session.digests)
    short = {"compressor/positions", "compressor/encoder/layers/bias/distance"}
    needed = leaves.flatten(jax.eval_shape(session.model.init, jax.random.key(0)))
    assert needed.keys() - taken.keys() == short
    assert "these begin anew" in line
    assert "these are left out" in line
    # fewer tokens: a row of their age table is another token's
    for tokens, of_tokens in ((TOKENS, True), (1, False)):
        other = make_config(layout__tokens=tokens, train__init_from=str(folder))
        model = Session(other, tmp_path / str(tokens)).model
        taken, _ = earlier_run.read(other, model, session.digests)
        assert ("compressor/encoder/layers/bias/age" in taken) == of_tokens
        assert ("compressor/tokens" in taken) == of_tokens


def test_a_run_that_continues_does_not_ask_for_the_earlier_one(compressed, tmp_path):
    folder, config = compressed
    shutil.rmtree(config.train.init_from)
    config.train.steps = 3
    assert Session(config, folder).fit().step == 3
    with pytest.raises(WorkdirError, match=r"train.init_from: workdir .* has no config.json"):
        Session(config, tmp_path / "another").fit()


@pytest.mark.parametrize(
    ("values", "error", "text"),
    [
        ({"model__width": 16}, ConfigError, r"model.width=8 there, 16 here"),
        ({"model__backbone": "hstu"}, ConfigError, r"model.backbone='sasrec' there, 'hstu' here"),
        ({"model__sasrec__block": "classic"}, ConfigError, "model.sasrec.block='modern' there"),
        ({"loss__similarity": "cosine"}, ConfigError, "loss.similarity='dot' there"),
        # what is held out here was trained on there
        ({"data__holdout": 3}, WorkdirError, r"train.init_from: .* was trained on another dataset"),
    ],
)
def test_another_model_or_other_data_is_refused(full, tmp_path, values, error, text):
    session = Session(make_config(train__init_from=str(full), **values), tmp_path)
    with pytest.raises(error, match=text) as caught:
        session.init()
    assert str(full) in str(caught.value)


def test_keys_of_other_backbones_and_of_training_may_differ(full, tmp_path):
    values = {"model__hstu__activation": "none", "model__dropout": 0.0, "train__batch_size": 2}
    session = Session(make_config(train__init_from=str(full), **values), tmp_path)
    assert "item/embedding" in earlier_run.read(session.config, session.model, session.digests)[0]


def test_every_key_that_may_differ_is_one():
    config = Config()
    for key in (*earlier_run.MAY_DIFFER, *earlier_run.LIKE_MODEL):
        value = config
        for name in key.split("."):
            value = getattr(value, name)
    names = {field.name for field in dataclasses.fields(config.model)}
    assert set(earlier_run.BACKBONES) < names


def test_a_trained_item_tower_is_refused():
    config = make_config(train__init_from="somewhere", model__texts__model="tower")
    config.model.texts.train, config.loss.kind = "full", "sampled_softmax"
    with pytest.raises(ConfigError, match=r"train.init_from='somewhere': the item tower"):
        validate(config)
