"""Weights of the reference: every shape, every insertion, every name.

Expected values come from `tests.reference.persrec` (float64 NumPy, written from the reference's
equations) and from recorded outputs of the reference itself (`tests/golden`).
"""

import json
import math
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxrec.errors import ConfigError
from jaxrec.interop import golden, persrec
from tests.reference import persrec as reference

GOLDEN = pathlib.Path(__file__).parents[1] / "golden"
FILES = sorted(GOLDEN.glob("*.npz"))
ROWS = 13  # item table: padding and 12 items


def settings_of(length, method=None, width=8, item_width=8, heads=2, layers=1, **more):
    config = {
        "n_layers": layers,
        "n_heads": heads,
        "hstu_embedding_size": width,
        "item_embedding_size": item_width,
        "MAX_ITEM_LIST_LENGTH": length,
        "loss": "nce",
        "fix_temp": True,
        **more,
    }
    if method is not None:
        config["insert_method"] = method
        config["number_of_user_tokens"] = sum(k for _, k in method)
    return config


def recorded(config, seed=0, batch=2, scale=0.3, least=1):
    """What the reference would record for random weights and histories: a golden file's arrays."""
    rng = np.random.default_rng(seed)
    state = reference.random_state(rng, config, ROWS, scale)
    items, mask, seq = reference.left_padded(
        rng, batch, config["MAX_ITEM_LIST_LENGTH"], ROWS, least
    )
    arrays = {f"param/{name}": weight for name, weight in state.items()}
    arrays |= {"config": np.asarray(json.dumps(config)), "items": items, "mask": mask, "seq": seq}
    arrays["hidden"] = reference.hidden(state, config, items[:, :-1], mask)[0]
    arrays["scores"] = reference.scores(state, config, seq)
    if not reference.methods(config):
        neg = rng.integers(0, ROWS, (2, 4))
        arrays["neg"] = neg
        arrays["loss"] = np.float64(reference.loss(state, config, items, mask, neg))
        arrays["grad_item_embedding"] = reference.gradient(
            state, config, items, mask, neg, "item_embedding.weight"
        )
    return arrays


def state_of(arrays):
    return {k.removeprefix("param/"): v for k, v in arrays.items() if k.startswith("param/")}


def close(arrays, tolerance=1e-6):
    """The model gives what is recorded, relative to the size of what is recorded."""
    for key, value in golden.compare(arrays).items():
        # relative, and absolute where numbers are below 1
        assert value <= tolerance * max(1.0, 1 / np.abs(arrays[key]).max()), (key, value)


# -- recorded outputs of the reference --------------------------------------------------------


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_golden_files(path, capsys):
    assert golden.main([str(path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    keys = [line.split()[0] for line in lines]
    plain = ["hidden", "scores", "loss", "grad_item_embedding"]
    assert keys == (plain if path.stem == "hstu_causal" else plain[:2])
    assert all(line.endswith("ok") for line in lines)
    arrays = golden.read(str(path))
    for key, value in golden.compare(arrays).items():
        assert value * np.abs(arrays[key]).max() <= 1e-5  # these files agree absolutely too


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_golden_outputs_in_float32(path):
    """Ordinary arithmetic reaches 1e-5 absolutely too, rounding of both sides included."""
    arrays = golden.read(str(path))
    differences = golden.compare(arrays, "float32")
    for key in ("hidden", "scores"):
        assert differences[key] * max(1.0, np.abs(arrays[key]).max()) <= 1e-5


def test_there_are_golden_files():
    assert len(FILES) == 2


# -- other shapes -------------------------------------------------------------------------------

CASES = {
    "one cut": settings_of(7, [(4, 2)]),
    "several cuts": settings_of(9, [(3, 2), (5, 1), (8, 3)], layers=2),
    "at the start": settings_of(6, [(0, 2), (3, 1)]),
    "at the end": settings_of(6, [(2, 1), (6, 2)]),
    "twice at one place": settings_of(6, [(3, 1), (3, 2)]),
    "a cut without tokens": settings_of(7, [(2, 0), (4, 2), (4, 0), (6, 0)]),
    "narrow items": settings_of(6, [(3, 2)], item_width=5, layers=2),
    "wide items": settings_of(6, [(3, 2)], width=6, heads=3, item_width=11),
    "one head": settings_of(5, [(2, 1)], heads=1),
    "many layers": settings_of(5, [(2, 1)], layers=5, width=4),
    "no activation": settings_of(6, [(3, 2)], hidden_act="none"),
    "default insertion": settings_of(7, number_of_user_tokens=2, pretrain_item_num=4),
    "one item": settings_of(1, [(0, 1), (1, 1)]),
    "plain": settings_of(4),
    "plain, projected": settings_of(4, item_width=5),
    "plain, learned scale": settings_of(4, fix_temp=False),
    "plain, low threshold": settings_of(4, nce_thres=0.3),
    "plain, no activation": settings_of(4, hidden_act="none"),
}


@pytest.mark.parametrize("name", CASES)
def test_equals_the_equations(name):
    close(recorded(CASES[name]))


@st.composite
def configurations(draw):
    length = draw(st.integers(1, 8))
    method = None
    if draw(st.booleans()):
        offsets = sorted(draw(st.lists(st.integers(0, length), min_size=1, max_size=4)))
        method = [(offset, draw(st.integers(0, 2))) for offset in offsets]
        method[-1] = (method[-1][0], 1)
    heads = draw(st.integers(1, 3))
    width = heads * draw(st.integers(1, 3))
    return settings_of(
        length, method, width, draw(st.integers(1, 6)), heads, layers=draw(st.sampled_from([1, 2]))
    )


@settings(deadline=None, max_examples=5)
@given(configurations(), st.integers(0, 1000))
def test_any_configuration_equals_the_equations(config, seed):
    """Users without a single item included (`least=0`): tokens alone are valid there."""
    arrays = recorded(config, seed, least=0 if "insert_method" in config else 1)
    found = {k: v * np.abs(arrays[k]).max() for k, v in golden.compare(arrays).items()}
    # a direction of a short vector is ill-conditioned: compare directions of ordinary ones
    state = state_of(arrays)
    y, _ = reference.hidden(state, config, arrays["seq"], arrays["seq"] != 0)
    rows = reference.items_of(state, np.arange(ROWS))
    shortest = min(np.linalg.norm(y[:, -1], axis=-1).min(), np.linalg.norm(rows, axis=-1).min())
    assert found["hidden"] <= 2e-6
    assert found["scores"] <= 1e-6 / min(shortest, 0.5)


@pytest.mark.parametrize("case", ["several cuts", "narrow items"])
def test_every_weight_counts(case):
    """No weight is left behind: changing any one of them shows."""
    arrays = recorded(CASES[case])
    state = state_of(arrays)
    model_config, _ = persrec.load(state, CASES[case])
    model = model_config.build()
    lengths = model_config.lengths(arrays["mask"])
    times = jnp.zeros(arrays["items"].shape, jnp.int32)
    outputs = jax.jit(
        lambda p: model.forward(p, arrays["items"][:, :-1], model.layout, lengths, times)[0]
    )
    valid = model.layout.valid(lengths)
    rng = np.random.default_rng(1)
    for name in set(state) - {"logit_scale"}:
        noise = 0.1 * rng.standard_normal(state[name].shape).astype(np.float32)
        _, params = persrec.load({**state, name: state[name] + noise}, CASES[case])
        assert np.abs(outputs(params) - arrays["hidden"])[valid].max() > 1e-3, name


def test_padding_and_the_unused_position_do_not_count():
    """Ids under the mask are arbitrary, and the table's last row belongs to no position."""
    arrays = recorded(CASES["several cuts"])
    items = arrays["items"].copy()
    items[:, :-1] = np.where(arrays["mask"], items[:, :-1], ROWS - 1 - items[:, :-1])
    key = "param/position_embedding.weight"
    table = arrays[key].copy()
    table[-1] += 1
    close({**arrays, "items": items, key: table})


# -- what load returns ----------------------------------------------------------------------------


def test_model_config_runs_the_model():
    config = CASES["several cuts"]
    arrays = recorded(config)
    model_config, params = persrec.load(state_of(arrays), config)
    model = model_config.build()
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(
        jnp.shape, jax.eval_shape(model.init, jax.random.key(0))
    )
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(params))
    assert model.num_items == ROWS - 1
    times = jnp.zeros((2, 10), jnp.int32)
    lengths = model_config.lengths(arrays["mask"])
    items = arrays["items"][:, :-1]
    forward = jax.jit(lambda p: model.forward(p, items, model.layout, lengths, times))
    y, kv = forward(params)
    valid = model.layout.valid(lengths)
    np.testing.assert_allclose(y[valid], arrays["hidden"][valid], atol=2e-5)
    assert kv.k.shape == (1, 2, 6, 2, 4)  # of all layers but the first


def test_settings_of_the_loss():
    state = state_of(recorded(settings_of(3)))
    fixed, params = persrec.load(state, settings_of(3))
    assert fixed.loss.temperature == pytest.approx(0.05)
    assert "logit_scale" not in params
    state["logit_scale"] = np.float32(9.0)  # the reference clamps it to ln 100
    fixed, _ = persrec.load(state, settings_of(3))
    assert fixed.loss.temperature == pytest.approx(0.01)
    config = settings_of(3, fix_temp=False, nce_thres=0.5, hidden_dropout_prob=0.25)
    learned, params = persrec.load(state, config)
    assert learned.loss.temperature == 0
    assert float(params["logit_scale"]) == 9.0
    assert learned.loss.false_negative == 0.5
    assert learned.loss.token_weight == 0
    assert learned.model.dropout == 0.25
    # learned or fixed, the factor of the logits is the same
    scale = math.exp(min(9.0, math.log(100)))
    assert 1 / fixed.loss.temperature == pytest.approx(scale)


@pytest.mark.parametrize("prefix", ["module.", "model.module.", "param/"])
def test_prefixes(prefix):
    config = CASES["narrow items"]
    state = state_of(recorded(config))
    plain, params = persrec.load(state, config)
    same, again = persrec.load({prefix + k: v for k, v in state.items()}, config)
    assert plain == same
    jax.tree.map(np.testing.assert_array_equal, params, again)


def test_weights_without_effect_are_ignored():
    """The reference builds a relative bias that it never applies, and keeps its causal mask."""
    config = settings_of(4)
    state = state_of(recorded(config))
    state["_attn_mask"] = np.ones((4, 4), bool)
    state["_hstu._attention_layers.0._rel_attn_bias._ts_w"] = np.ones(129, np.float32)
    state["_hstu._attention_layers.0._rel_attn_bias._pos_w"] = np.ones(15, np.float32)
    persrec.load(state, config)


def test_lengths_of_segments():
    config = settings_of(6, [(2, 1), (2, 1), (5, 0)])
    model_config, _ = persrec.load(state_of(recorded(config)), config)
    mask = [[0, 0, 0, 0, 0, 1], [0, 1, 1, 1, 1, 1], [1] * 6, [0] * 6]
    assert model_config.lengths(mask).tolist() == [
        [0, 0, 0, 1],
        [1, 0, 3, 1],
        [2, 0, 3, 1],
        [0, 0, 0, 0],
    ]
    with pytest.raises(ValueError, match="row 1 has padding behind an item"):
        model_config.lengths([[1] * 6, [1, 0, 1, 1, 1, 1]])
    with pytest.raises(ValueError, match=r"shape \(1, 5\)"):
        model_config.lengths([[1] * 5])


def test_the_loss_of_a_model_with_tokens_is_refused():
    config = CASES["one cut"]
    arrays = recorded(config)
    model_config, params = persrec.load(state_of(arrays), config)
    with pytest.raises(ValueError, match="predict tokens"):
        golden.nce_loss(model_config, params, arrays["items"], arrays["mask"], [[1]])


# -- errors ---------------------------------------------------------------------------------------


def test_every_wrong_name_is_listed():
    config = CASES["narrow items"]
    state = state_of(recorded(config))
    del state["user_embedding"], state["_hstu._attention_layers.1._o.bias"]
    state["position_embedding.weight"] = np.zeros((4, 8), np.float32)
    state["item_id_proj_tower.bias"] = np.zeros(8, np.float32)
    state["_hstu._attention_layers.2._uvqk"] = np.zeros((8, 32), np.float32)
    with pytest.raises(ValueError, match="does not fit its config") as error:
        persrec.load(state, config)
    for part in (
        "missing user_embedding (1, 2, 8)",
        "missing _hstu._attention_layers.1._o.bias (8,)",
        "position_embedding.weight has shape (4, 8), the config needs (9, 8)",
        "unknown item_id_proj_tower.bias",
        "unknown _hstu._attention_layers.2._uvqk",
    ):
        assert part in str(error.value)


def test_a_state_without_item_table():
    with pytest.raises(ValueError, match=r"missing item_embedding\.weight"):
        persrec.load({}, settings_of(3))


def test_tokens_that_the_config_does_not_know():
    state = state_of(recorded(CASES["one cut"]))
    with pytest.raises(ValueError, match="unknown user_embedding"):
        persrec.load(state, settings_of(7))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"n_layers": None}, "n_layers is missing"),
        ({"n_heads": 0}, "n_heads is 0"),
        ({"n_heads": 3}, "not a multiple of n_heads=3"),
        ({"hstu_embedding_size": 8.0}, "hstu_embedding_size is 8.0"),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu'; supported: 'silu', 'none'"),
        ({"loss": "bce"}, "loss is 'bce'"),
        ({"normalization": "softmax_rel_bias"}, "normalization is 'softmax_rel_bias'"),
        ({"concat_ua": True}, "concat_ua is True"),
        ({"linear_config": "uvqkg"}, "linear_config is 'uvqkg'"),
        ({"loss_on_all_items": False}, "loss_on_all_items is False"),
        ({"number_of_user_tokens": 2}, "pretrain_item_num is missing"),
        ({"number_of_user_tokens": -2}, "number_of_user_tokens is -2"),
    ],
)
def test_settings_that_cannot_be_loaded(change, message):
    config = {k: v for k, v in {**settings_of(6), **change}.items() if v is not None}
    with pytest.raises(ConfigError) as error:
        persrec.load({}, config)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("method", "message"),
    [
        ([(5, 1), (3, 1)], "offset 3"),
        ([(7, 2)], "offset 7"),
        ([(-1, 2)], "offset -1"),
        ([(3, -2)], "pairs of integers"),
        ([(3, 2.0)], "pairs of integers"),
        ([(3, 2, 1)], "pairs of integers"),
        ([3, 2], "pairs of integers"),
        (3, "pairs of integers"),
        ("[(3, 2)]", "JSON list"),
        ([(3, 1)], "number_of_user_tokens=2"),
        ([], "number_of_user_tokens=2"),
        ([(3, 0)], "number_of_user_tokens=2"),
    ],
)
def test_insertions_that_cannot_be(method, message):
    config = {**settings_of(6), "insert_method": method, "number_of_user_tokens": 2}
    with pytest.raises(ConfigError, match="insert_method=") as error:
        persrec.load({}, config)
    assert message in str(error.value)


def test_insertions_as_json():
    config = {"insert_method": "[[3, 1], [5, 2]]", "number_of_user_tokens": 3}
    assert persrec.insert_method(config) == [(3, 1), (5, 2)]
    assert persrec.insert_method({"insert_method": [[0, 1]]}) == [(0, 1)]
    assert persrec.insert_method({}) == []
    assert persrec.insert_method({"number_of_user_tokens": 2, "pretrain_item_num": 3}) == [(3, 2)]
