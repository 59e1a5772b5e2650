"""The whole model in NumPy, float64: vectors, tokens, positions, times and layers put together.

Parameters are the project's own tree, read by name; everything else comes from the words of
docs/method.md through `tests.reference.layout`.
"""

import numpy as np

from tests.reference import attention, hstu, layout, llama, sasrec


def slots(segments):
    """Per position: (item slot it holds or stands behind, is it the last item of a complete
    segment).
    """
    places, slot = [], 0
    for items, tokens in segments:
        for i in range(items):
            places.append((slot + i, tokens > 0 and i == items - 1))
        slot += items
        places += [(max(slot - 1, 0), False)] * tokens
    return places


def times_of(segments, times, request_time):
    """(key, query) seconds [B, T]: a token happens with the last event of its segment; with
    `request_time` an item asks when the event it predicts happens, unless a cut hides it.
    """
    key, query = [], []
    for (slot, closes), place in zip(slots(segments), layout.places(segments), strict=True):
        key.append(times[:, slot])
        query_slot = slot + 1 if request_time and not place.token and not closes else slot
        query.append(times[:, query_slot])
    return np.stack(key, 1), np.stack(query, 1)


def embed(params, segments, items, *, scaled, fixed=False, absolute=None):
    """[B, T, D] encoder input. absolute: [B, T] rows of the position table, None for offsets."""
    vectors = np.float64(params["item"]["embedding"])[items]
    if "item_projection" in params:
        vectors = vectors @ np.float64(params["item_projection"]["kernel"])
    if scaled:
        vectors = vectors * vectors.shape[-1] ** 0.5
    tables = params["compressor"]
    x, tokens = [], 0
    for position, ((slot, _), place) in enumerate(
        zip(slots(segments), layout.places(segments), strict=True)
    ):
        if place.token:
            row = tables["tokens"][tokens if fixed else place.index]
            vector = np.repeat(np.float64(row)[None], len(items), 0)
            tokens += 1
        else:
            vector = vectors[:, slot].copy()
        if absolute is not None:
            vector += np.asarray(tables["positions"])[absolute[:, position]]
        elif not place.token and "positions" in tables:
            vector += tables["positions"][place.offset]
        x.append(vector)
    return np.stack(x, 1)


def layer_weights(params, layer):
    """One layer of the stacked parameters."""

    def pick(tree):
        if isinstance(tree, dict):
            return {k: pick(v) for k, v in tree.items()}
        return np.asarray(tree, np.float64)[layer]

    return pick(params["compressor"]["encoder"]["layers"])


def outputs(
    params,
    config,
    segments,
    items,
    lengths,
    times,
    *,
    max_segments,
    normalizer=1.0,
    fixed=False,
    absolute=None,
):
    """([B, T, D] encoder outputs, [B, T] which positions exist).

    config: a ModelConfig; items [B, E]; lengths [B, S]; times [B, E + 1].
    """
    where = layout.places(segments)
    visible = layout.visible(segments, (), max_segments)
    valid = np.asarray([layout.valid(segments, row, fixed) for row in lengths])
    key, query = times_of(segments, times, config.request_time)
    scaled = config.embed_scale
    x = embed(params, segments, items, scaled=scaled, fixed=fixed, absolute=absolute)
    for number in range(config.layers):
        w = layer_weights(params, number)
        tables = w.get("bias", {})
        bias = None
        if tables:
            clock = {"query_times": query, "key_times": key} if "time" in tables else {}
            tokens = max(k for _, k in segments)
            sizes = {"items": segments[0][0], "tokens": tokens}
            bias = attention.bias(where, where, **sizes, **tables, **clock)
            bias = np.repeat(bias, len(items) // len(bias), 0)
        if config.backbone == "hstu":
            x = hstu.layer(
                x,
                w["uvqk"]["kernel"],
                w["out"]["kernel"],
                w["out"]["bias"],
                visible,
                valid,
                heads=config.heads,
                normalizer=normalizer,
                bias=bias,
                act=config.hstu.activation,
            )
        elif config.backbone == "llama":
            turned = [place.offset for place in where]
            x = llama.layer(x, w, visible, valid, config=config, positions=turned, bias=bias)
        else:
            block = getattr(sasrec, config.sasrec.block)
            x = block(x, w, visible, valid, heads=config.heads, bias=bias)
    if config.backbone == "llama":
        final = params["compressor"]["encoder"]["final_norm"]["scale"]
        x = llama.rms_norm(x, final, config.llama.norm_eps)
    return x, valid
