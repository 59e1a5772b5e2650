"""Weights of the published reference model (PerSRec, arXiv 2601.03479): HSTU, PersonalizedHSTU.

    model_config, params = load(state, config)
    model = model_config.build()
    y, _ = model.forward(params, items, model.layout, model_config.lengths(mask), times)

`python -m jaxrec.interop.persrec FILE.npz` compares this project's model with recorded outputs
of the reference (`jaxrec.interop.golden`).

What the reference computes, and how the configuration says it here: items are left-padded over
the whole history and `insert_method` [(offset, k), ...] cuts it (a fixed layout with absolute
positions); attention is silu(q k) / T, T the length of the inserted sequence; the relative bias
that it can build is never applied, so its weights are ignored; logits are cosines.
"""

import dataclasses
import json
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxrec.config import HSTUConfig, LossConfig, ModelConfig
from jaxrec.errors import ConfigError
from jaxrec.layout import SegmentLayout
from jaxrec.model import network, recommender
from jaxrec.objective import losses
from jaxrec.types import Params

_ITEMS = "item_embedding.weight"
_PROJECTION = "item_id_proj_tower.weight"
_POSITIONS = "position_embedding.weight"
_TOKENS = "user_embedding"
_SCALE = "logit_scale"
_BLOCK = "_hstu._attention_layers.{}.{}"
# in a state dict, but without effect on any output
_UNUSED = ("_attn_mask",)
_UNUSED_IN_BLOCK = ("_rel_attn_bias._w", "_rel_attn_bias._ts_w", "_rel_attn_bias._pos_w")
# what the reference's configuration may say; its code knows nothing else
_FIXED_OPTIONS: dict[str, tuple[Any, ...]] = {
    "loss": ("nce",),
    "normalization": ("rel_bias", "hstu_rel_bias"),
    "linear_config": ("uvqk",),
    "concat_ua": (False,),
    "loss_on_all_items": (True,),
}


@dataclasses.dataclass(frozen=True)
class ReferenceModel:
    """The configuration of a reference model: all that is needed to build and run it."""

    model: ModelConfig
    loss: LossConfig
    layout: SegmentLayout
    num_items: int

    def build(self) -> recommender.Model:
        """The model whose parameters `load` returned."""
        return recommender.build(self.model, self.loss, self.layout, self.num_items)

    def lengths(self, mask: Any) -> np.ndarray:
        """int32 [B, S] items of every segment from the reference's mask [B, N].

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


def load(
    state: Mapping[str, np.ndarray], config: Mapping[str, Any]
) -> tuple[ReferenceModel, Params]:
    """(model_config, params) of a reference HSTU or PersonalizedHSTU.

    state: its state dict as arrays under the reference's own names; one prefix before all of
    them (`module.`, `param/`) is allowed. config: its settings (`n_layers`, `n_heads`,
    `hstu_embedding_size`, `item_embedding_size`, `MAX_ITEM_LIST_LENGTH`; personalised:
    `number_of_user_tokens` with `pretrain_item_num` or `insert_method`; `hidden_act`,
    `fix_temp`, `nce_thres`, `hidden_dropout_prob` where they are set).

    Raises ConfigError for settings that the reference cannot run, ValueError with every
    missing, unknown and mis-shaped name for a state that does not fit them.
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
    loss = _loss_config(config, params["logit_scale"])
    if loss.temperature:
        del params["logit_scale"]
    return ReferenceModel(model, loss, layout, len(params["item_embedding"]) - 1), params


def insert_method(config: Mapping[str, Any]) -> list[tuple[int, int]]:
    """[(offset, tokens), ...] of a configuration; empty for plain HSTU.

    Without `insert_method`, all tokens stand behind the first `pretrain_item_num` items.
    """
    given = config.get("insert_method")
    if isinstance(given, str):
        try:
            given = json.loads(given)
        except json.JSONDecodeError as error:
            raise ConfigError(f"insert_method={given!r}: a JSON list is needed") from error
    tokens = config.get("number_of_user_tokens") or 0
    if given is None:
        if not tokens:
            return []
        total = _size(config, "number_of_user_tokens")
        return [(_size(config, "pretrain_item_num"), total)]
    needed = "a list of pairs of integers (offset, tokens >= 0) is needed"
    try:
        method = [(offset, k) for offset, k in given]
    except (TypeError, ValueError) as error:
        raise ConfigError(f"insert_method={given!r}: {needed}") from error
    if not all(_is_integer(offset) and _is_integer(k) and k >= 0 for offset, k in method):
        raise ConfigError(f"insert_method={given!r}: {needed}")
    total = sum(k for _, k in method)
    if not total or total != config.get("number_of_user_tokens", total):
        raise ConfigError(
            f"insert_method={given!r}: its {total} tokens must be at least one and equal "
            f"number_of_user_tokens={config.get('number_of_user_tokens')!r}"
        )
    return [(int(offset), int(k)) for offset, k in method]


def nce_loss(
    reference: ReferenceModel, params: Params, items: Any, mask: Any, negatives: Any
) -> jax.Array:
    """The reference's loss of plain HSTU (`loss = "nce"`, negatives shared by the batch).

    items: [B, N + 1], position i is fed items[:, i] and predicts items[:, i + 1]; mask: [B, N]
    valid positions; negatives: item ids of any shape, every one against every position. Mean
    over valid positions. As in the reference a negative is left out by its cosine to the
    positive alone (padding rows do count), and row 0 of the item table gets no gradient.
    Raises ValueError for a layout with tokens: there the reference predicts tokens too.
    """
    if reference.layout.num_tokens:
        raise ValueError(
            "a model with tokens has no reference loss here: the reference trains items to "
            "predict tokens, which is not reproduced; use recommender.Model.loss"
        )
    model = reference.build()
    table = params["item_embedding"]
    frozen = jax.lax.stop_gradient(table[:1])
    params = {**params, "item_embedding": jnp.concatenate([frozen, table[1:]])}
    items = jnp.asarray(items, jnp.int32)
    y, _ = model.forward(
        params,
        items[:, :-1],
        reference.layout,
        jnp.asarray(reference.lengths(mask)),
        jnp.zeros(items.shape, jnp.int32),
    )
    vectors = model.item_table(params).astype(jnp.float32)  # the losses are float32
    count = jnp.ones(items[:, 1:].size, jnp.int32)
    others = jnp.asarray(negatives, jnp.int32).reshape(-1)
    total, weight = losses.sampled_softmax(
        model.queries(params, y).reshape(-1, y.shape[-1]),
        vectors[items[:, 1:].reshape(-1)],
        vectors[others],
        jnp.full(others.shape, -1, jnp.int32),  # ids decide nothing, cosines do
        count,
        jnp.asarray(mask != 0, jnp.float32).reshape(-1),
        scale=model.network.apply({"params": params}, method=network.Network.scale),
        false_negative=reference.loss.false_negative,
    )
    return total / weight


# -- settings ----------------------------------------------------------------------------------


def _is_integer(value: Any) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


def _size(config: Mapping[str, Any], key: str) -> int:
    value: Any = config.get(key)
    if not _is_integer(value) or value < 1:
        found = "is missing" if value is None else f"is {value!r}"
        raise ConfigError(f"reference config: {key} {found}; a positive integer is needed")
    return int(value)


def _model_config(config: Mapping[str, Any]) -> ModelConfig:
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
        hstu=HSTUConfig(position_bias=False, time_bias=False, activation=activation),
    )


def _loss_config(config: Mapping[str, Any], logit_scale: jax.Array) -> LossConfig:
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


def _strip_prefix(state: Mapping[str, Any]) -> dict[str, Any]:
    """Names without the one prefix that wrappers put before all of them."""
    tables = [name for name in state if name.endswith(_ITEMS)]
    prefix = tables[0].removesuffix(_ITEMS) if len(tables) == 1 else ""
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


def _check(state: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Raises ValueError with every name that is missing, unknown or of another shape."""
    layers = sum(name.endswith("._uvqk") for name in shapes)
    unused = {_BLOCK.format(layer, name) for layer in range(layers) for name in _UNUSED_IN_BLOCK}
    unused.update(_UNUSED)
    problems = [f"missing {name} {shape}" for name, shape in shapes.items() if name not in state]
    problems += [f"unknown {name}" for name in state if name not in shapes and name not in unused]
    for name, shape in shapes.items():
        found = np.shape(state[name]) if name in state else shape
        if found != shape:
            problems.append(f"{name} has shape {found}, the config needs {shape}")
    if not problems and shapes[_ITEMS][0] < 2:
        problems.append(f"{_ITEMS} has {shapes[_ITEMS][0]} rows: padding and one item are needed")
    if problems:
        raise ValueError("the state does not fit its config: " + "; ".join(problems))


def _params(
    state: Mapping[str, np.ndarray], model: ModelConfig, layout: SegmentLayout
) -> dict[str, Any]:
    """The parameter tree of `network.Network`; layers are stacked on axis 0."""

    def stack(name: str) -> np.ndarray:
        return np.stack([state[_BLOCK.format(layer, name)] for layer in range(model.layers)])

    compressor: dict[str, Any] = {
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
        "item_embedding": state[_ITEMS],
        "logit_scale": state[_SCALE],
        "compressor": compressor,
    }
    if _PROJECTION in state:
        params["item_projection"] = {"kernel": state[_PROJECTION].T}
    return jax.tree.map(jnp.asarray, params)


if __name__ == "__main__":
    import sys

    from jaxrec.interop.golden import main

    sys.exit(main())
