"""Weights of the published reference model (PerSRec, arXiv 2601.03479): HSTU, PersonalizedHSTU.

    reference, params = load(state, config)
    model = reference.build()
    y, _ = model.forward(params, items, model.layout, reference.lengths(mask), times)

`jaxrec.interop.golden` compares the loaded model with recorded outputs of the reference.

The reference pads histories on the left and cuts them at `insert_method` [(offset, k), ...]: a
layout with fixed insertion points and absolute positions. Attention is silu(q k) / T, T the length
of the sequence with its tokens. Logits are cosines. The reference builds a relative attention bias
but never applies it, so those weights are ignored.
"""

import dataclasses
import json
import math
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

from jaxrec.config import HSTUConfig, LossConfig, ModelConfig
from jaxrec.errors import ConfigError
from jaxrec.items import table
from jaxrec.layout import SegmentLayout
from jaxrec.model import network, parameters, recommender
from jaxrec.types import Array, Json, Params

_ITEMS = "item_embedding.weight"
_PROJECTION = "item_id_proj_tower.weight"
_POSITIONS = "position_embedding.weight"
_TOKENS = "user_embedding"
_SCALE = "logit_scale"
_BLOCK = "_hstu._attention_layers.{}.{}"
# in a state dict, but without effect on the outputs
_UNUSED = ("_attn_mask",)
_UNUSED_IN_BLOCK = ("_rel_attn_bias._w", "_rel_attn_bias._ts_w", "_rel_attn_bias._pos_w")
# the only values that the reference's code supports
_FIXED_OPTIONS: dict[str, tuple[str | bool, ...]] = {
    "loss": ("nce",),
    "normalization": ("rel_bias", "hstu_rel_bias"),
    "linear_config": ("uvqk",),
    "concat_ua": (False,),
    "loss_on_all_items": (True,),
}


@dataclasses.dataclass(frozen=True)
class ReferenceModel:
    """The configuration of a reference model: everything needed to build and run it."""

    model: ModelConfig
    loss: LossConfig
    layout: SegmentLayout
    num_items: int

    def build(self) -> recommender.Model:
        """The model whose parameters `load` returned."""
        return recommender.build(self.model, self.loss, self.layout, self.num_items)

    def lengths(self, mask: Array) -> np.ndarray:
        """int32 [B, S] items per segment, from the reference's mask [B, N].

        Raises ValueError unless the mask fits the layout and is left-padded (invalid first).
        """
        mask = np.asarray(mask) != 0
        if mask.ndim != 2 or mask.shape[1] != self.layout.num_items:
            raise ValueError(f"mask has shape {mask.shape}, not (users, {self.layout.num_items})")
        if (mask[:, :-1] & ~mask[:, 1:]).any():
            row = int(np.flatnonzero((mask[:, :-1] & ~mask[:, 1:]).any(1))[0])
            raise ValueError(
                f"mask row {row} has padding behind an item: histories are left-padded"
            )
        ends = np.cumsum(mask, axis=1)
        ends = np.concatenate([np.zeros_like(ends[:, :1]), ends], axis=1)
        return np.diff(ends[:, self.layout.item_segment_starts], axis=1).astype(np.int32)


def load(state: Mapping[str, np.ndarray], config: Json) -> tuple[ReferenceModel, Params]:
    """(model description, params) of a reference HSTU or PersonalizedHSTU.

    state: its state dict as arrays under the reference's own names, which may share one prefix
    (`module.`, `param/`). config: its settings: `n_layers`, `n_heads`, `hstu_embedding_size`,
    `item_embedding_size`, `MAX_ITEM_LIST_LENGTH`; for PersonalizedHSTU `number_of_user_tokens` with
    `pretrain_item_num` or `insert_method`; optionally `hidden_act`, `fix_temp`, `nce_thres`,
    `hidden_dropout_prob`.

    Raises ConfigError for settings that the reference cannot run, and ValueError with every
    missing, unknown and mis-shaped name for a state that does not fit the settings.
    """
    length = _size(config, "MAX_ITEM_LIST_LENGTH")
    method = insert_method(config)
    tokens = sum(k for _, k in method)
    try:
        layout = SegmentLayout.insertions(length, method)
    except ValueError as error:
        raise ConfigError(f"insert_method={method!r}: {error}") from error
    model = _model_config(config)
    state = _strip_prefix(state)
    shapes = _shapes(model, length, tokens, np.shape(state.get(_ITEMS, ()))[:1])
    _check(state, shapes)
    params = _params({name: np.asarray(state[name], np.float32) for name in shapes}, model, layout)
    loss = _loss_config(config, params[parameters.SCALE])
    if loss.temperature:
        del params[parameters.SCALE]
    return ReferenceModel(model, loss, layout, shapes[_ITEMS][0] - 1), params


def insert_method(config: Json) -> list[tuple[int, int]]:
    """[(offset, tokens), ...] of a configuration; empty for plain HSTU.

    Without `insert_method` all tokens stand behind the first `pretrain_item_num` items. Raises
    ConfigError.
    """
    value = config.get("insert_method")
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except json.JSONDecodeError as error:
            raise ConfigError(f"insert_method={value!r}: a JSON list is needed") from error
    tokens = config.get("number_of_user_tokens") or 0
    if value is None:
        if not tokens:
            return []
        total = _size(config, "number_of_user_tokens")
        return [(_size(config, "pretrain_item_num"), total)]
    needed = "a list of pairs of integers (offset, tokens >= 0) is needed"
    try:
        method = [(offset, k) for offset, k in value]
    except (TypeError, ValueError) as error:
        raise ConfigError(f"insert_method={value!r}: {needed}") from error
    if not all(_is_integer(offset) and _is_integer(k) and k >= 0 for offset, k in method):
        raise ConfigError(f"insert_method={value!r}: {needed}")
    total = sum(k for _, k in method)
    if not total or total != config.get("number_of_user_tokens", total):
        raise ConfigError(
            f"insert_method={value!r}: its {total} tokens must be at least one and equal "
            f"number_of_user_tokens={config.get('number_of_user_tokens')!r}"
        )
    return [(int(offset), int(k)) for offset, k in method]


# -- settings ----------------------------------------------------------------------------------


def _is_integer(value: object) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


def _size(config: Json, key: str) -> int:
    value = config.get(key)
    if value is None or not _is_integer(value) or value < 1:
        problem = "is missing" if value is None else f"is {value!r}"
        raise ConfigError(f"reference config: {key} {problem}; a positive integer is needed")
    return int(value)


def _model_config(config: Json) -> ModelConfig:
    for key, allowed in _FIXED_OPTIONS.items():
        value = config.get(key)
        if value is not None and value not in allowed:
            names = ", ".join(map(repr, allowed))
            raise ConfigError(f"reference config: {key} is {value!r}; supported: {names}")
    activation = config.get("hidden_act") or "silu"
    if activation not in ("silu", "none"):
        raise ConfigError(
            f"reference config: hidden_act is {activation!r}; supported: 'silu', 'none' (the "
            "reference applies no activation under any other name: say 'none' to load it so)"
        )
    width, heads = _size(config, "hstu_embedding_size"), _size(config, "n_heads")
    if width % heads:
        raise ConfigError(
            f"reference config: hstu_embedding_size is {width}, not a multiple of n_heads={heads}"
        )
    item_width = _size(config, "item_embedding_size")
    return ModelConfig(
        backbone="hstu",
        width=width,
        item_width=0 if item_width == width else item_width,
        layers=_size(config, "n_layers"),
        heads=heads,
        dropout=float(config.get("hidden_dropout_prob") or 0.0),
        embed_dropout=0.0,
        embed_scale=False,
        hstu=HSTUConfig(position_bias=False, time_bias=False, activation=activation),
    )


def _loss_config(config: Json, logit_scale: Array) -> LossConfig:
    """A fixed temperature is a setting, a learned one stays a parameter."""
    scale = math.exp(min(max(float(logit_scale), 0.0), math.log(network.MAX_SCALE)))
    return LossConfig(
        kind="sampled_softmax",
        similarity="cosine",
        temperature=1 / scale if config.get("fix_temp") else 0.0,
        sampling="uniform",
        false_negative=float(config.get("nce_thres") or 0.99),
        token_weight=0.0,
    )


# -- weights -----------------------------------------------------------------------------------


def _strip_prefix(state: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Names without the prefix that training wrappers put before all of them."""
    item_tables = [name for name in state if name.endswith(_ITEMS)]
    prefix = item_tables[0].removesuffix(_ITEMS) if len(item_tables) == 1 else ""
    return {name.removeprefix(prefix): value for name, value in state.items()}


def _shapes(
    model: ModelConfig, length: int, tokens: int, rows: tuple[int, ...]
) -> dict[str, tuple[int, ...]]:
    """Shape of every weight; `rows` of the item table come from the state itself."""
    width, item_width = model.width, model.item_width or model.width
    shapes: dict[str, tuple[int, ...]] = {
        _ITEMS: (*(rows or (0,)), item_width),
        _POSITIONS: (length + tokens + 1, width),
        _SCALE: (),
    }
    if item_width != width:
        shapes[_PROJECTION] = (width, item_width)
    if tokens:
        shapes[_TOKENS] = (1, tokens, width)
    for layer in range(model.layers):
        shapes[_BLOCK.format(layer, "_uvqk")] = (width, 4 * width)
        shapes[_BLOCK.format(layer, "_o.weight")] = (width, width)
        shapes[_BLOCK.format(layer, "_o.bias")] = (width,)
    return shapes


def _check(state: Mapping[str, np.ndarray], shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Raises ValueError with every name that is missing, unknown or of another shape."""
    layers = sum(name.endswith("._uvqk") for name in shapes)
    unused = {_BLOCK.format(layer, name) for layer in range(layers) for name in _UNUSED_IN_BLOCK}
    unused.update(_UNUSED)
    problems = [f"missing {name} {shape}" for name, shape in shapes.items() if name not in state]
    problems += [f"unknown {name}" for name in state if name not in shapes and name not in unused]
    for name, shape in shapes.items():
        actual = np.shape(state[name]) if name in state else shape
        if actual != shape:
            problems.append(f"{name} has shape {actual}, the config needs {shape}")
    if not problems and shapes[_ITEMS][0] < 2:
        problems.append(f"{_ITEMS} has {shapes[_ITEMS][0]} rows: padding and one item are needed")
    if problems:
        raise ValueError("the state does not fit its config: " + "; ".join(problems))


def _params(state: Mapping[str, np.ndarray], model: ModelConfig, layout: SegmentLayout) -> Params:
    """The parameter tree of `recommender.Model`; layers are stacked on axis 0."""

    def stack(name: str) -> np.ndarray:
        return np.stack([state[_BLOCK.format(layer, name)] for layer in range(model.layers)])

    compressor: Params = {
        # the reference's last row belongs to no position
        "positions": state[_POSITIONS][: layout.num_positions],
        "encoder": {
            "layers": {
                "uvqk": {"kernel": stack("_uvqk")},
                "out": {
                    "kernel": stack("_o.weight").transpose(0, 2, 1),
                    "bias": stack("_o.bias"),
                },
            }
        },
    }
    if layout.num_tokens:
        compressor["tokens"] = state[_TOKENS][0]
    params = {
        table.ITEM: {table.EMBEDDING: state[_ITEMS]},
        parameters.SCALE: state[_SCALE],
        "compressor": compressor,
    }
    if _PROJECTION in state:
        params["item_projection"] = {"kernel": state[_PROJECTION].T}
    return jax.tree.map(jnp.asarray, params)
