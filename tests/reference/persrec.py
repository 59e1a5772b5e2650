"""The published reference model, HSTU and its personalised form, in NumPy, float64.

Written from the facts of its description (attention silu(q k)/T over the inserted sequence, T
its length; LayerNorm without affine; absolute positions of the inserted sequence, tokens
included; cosine logits), one position at a time. `state` holds weights under the reference's
own names, `config` its settings.
"""

import math

import numpy as np

from tests.reference import hstu


def methods(config):
    """The insertions [(offset, k), ...]; none for plain HSTU."""
    if not config.get("number_of_user_tokens"):
        return []
    if config.get("insert_method"):
        return config["insert_method"]
    return [(config["pretrain_item_num"], config["number_of_user_tokens"])]


def items_of(state, ids):
    """Item vectors at model width."""
    vectors = np.float64(state["item_embedding.weight"])[ids]
    if "item_id_proj_tower.weight" in state:
        vectors = vectors @ np.float64(state["item_id_proj_tower.weight"]).T
    return vectors


def sequence(length, method):
    """("item" | "token", index, number of cuts before) of every position, in order."""
    row, token = [], 0
    for index in range(length + 1):
        for cut, (offset, k) in enumerate(method):
            if offset == index:
                row += [("token", token + i, cut) for i in range(k)]
                token += k
        if index < length:
            row.append(("item", index, sum(offset <= index for offset, _ in method)))
    return row


def hidden(state, config, ids, mask):
    """([B, T, D] outputs, [B, T] which positions exist) for ids and mask [B, N]."""
    method = methods(config)
    row = sequence(ids.shape[1], method)
    x = np.zeros((len(ids), len(row), config["hstu_embedding_size"]))
    valid = np.ones((len(ids), len(row)), bool)
    vectors = items_of(state, ids)
    for position, (kind, index, _) in enumerate(row):
        if kind == "item":
            x[:, position] = vectors[:, index]
            valid[:, position] = mask[:, index]
        else:
            x[:, position] = state["user_embedding"][0, index]
        x[:, position] += state["position_embedding.weight"][position]
    visible = np.zeros((len(row), len(row)), bool)
    for i, (_, _, cut) in enumerate(row):
        for j, (kind, _, other) in enumerate(row[: i + 1]):
            visible[i, j] = kind == "token" or other == cut
    for layer in range(config["n_layers"]):
        name = f"_hstu._attention_layers.{layer}."
        x = hstu.layer(
            x,
            state[name + "_uvqk"],
            state[name + "_o.weight"].T,
            state[name + "_o.bias"],
            visible,
            valid,
            heads=config["n_heads"],
            normalizer=len(row),
            act=config.get("hidden_act") or "silu",
        )
    return x, valid


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def scores(state, config, seq):
    """[B, V]: cosine of the last position's output with every item row."""
    y, _ = hidden(state, config, seq, seq != 0)
    rows = items_of(state, np.arange(len(state["item_embedding.weight"])))
    return unit(y[:, -1]) @ unit(rows).T


def loss(state, config, items, mask, neg):
    """NCE of plain HSTU: items [B, N + 1], mask [B, N], neg any shape, shared by the batch."""
    y, _ = hidden(state, config, items[:, :-1], mask)
    others = unit(items_of(state, neg.reshape(-1)))
    scale = math.exp(min(max(float(state["logit_scale"]), 0.0), math.log(100)))
    threshold = config.get("nce_thres") or 0.99
    losses = []
    for b, i in zip(*np.nonzero(mask), strict=True):
        query = unit(y[b, i])
        positive = unit(items_of(state, items[b, i + 1]))
        kept = others[others @ positive <= threshold]
        logits = scale * np.concatenate([[query @ positive], kept @ query])
        top = logits.max()
        losses.append(top + math.log(np.exp(logits - top).sum()) - logits[0])
    return float(np.mean(losses))


def gradient(state, config, items, mask, neg, name, step=1e-5):
    """Central differences of `loss` with respect to one weight.

    Row 0 of the item table is padding: the reference gives it no gradient.
    """
    out = np.zeros(np.shape(state[name]))
    for index in np.ndindex(*out.shape):
        if name == "item_embedding.weight" and index[0] == 0:
            continue
        sides = []
        for sign in (1, -1):
            weight = np.array(state[name], np.float64)
            weight[index] += sign * step
            sides.append(loss({**state, name: weight}, config, items, mask, neg))
        out[index] = (sides[0] - sides[1]) / (2 * step)
    return out


def random_state(rng, config, rows, scale=0.3):
    """Random weights of every name that the reference's state dict has; float32."""
    width, item_width = config["hstu_embedding_size"], config["item_embedding_size"]
    tokens = config.get("number_of_user_tokens") or 0
    length = config["MAX_ITEM_LIST_LENGTH"]

    def normal(*shape):
        return (scale * rng.standard_normal(shape)).astype(np.float32)

    state = {
        "item_embedding.weight": normal(rows, item_width),
        "position_embedding.weight": normal(length + tokens + 1, width),
        "logit_scale": np.float32(math.log(20)),
    }
    if item_width != width:
        state["item_id_proj_tower.weight"] = normal(width, item_width)
    if tokens:
        state["user_embedding"] = normal(1, tokens, width)
    for layer in range(config["n_layers"]):
        name = f"_hstu._attention_layers.{layer}."
        state[name + "_uvqk"] = normal(width, 4 * width)
        state[name + "_o.weight"] = normal(width, width)
        state[name + "_o.bias"] = normal(width)
    return state


def left_padded(rng, batch, length, rows, least=1):
    """(items [B, N + 1], mask [B, N], seq [B, N]) of random histories, one of them full."""
    have = rng.integers(least, length + 1, batch)
    have[0] = length
    mask = np.arange(length)[None] >= length - have[:, None]
    items = rng.integers(1, rows, (batch, length + 1))
    seq = np.where(mask, rng.integers(1, rows, (batch, length)), 0)
    return items, mask.astype(np.int64), seq
