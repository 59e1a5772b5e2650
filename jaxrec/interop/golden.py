"""Recorded outputs of the reference against this project's model.

    python -m jaxrec.interop.golden FILE.npz [--dtype float32]

A file holds `config` (JSON), the weights under `param/`, training inputs `items` [B, N + 1] and
`mask` [B, N] with the encoder's outputs `hidden` [B, T, D], evaluation inputs `seq` [B, N] (0 is
padding) with `scores` [B, V], and for plain HSTU `neg` (negatives shared by the batch) with
`loss` and its gradient `grad_item_embedding` [V, item width].

Rounding grows with the numbers: a difference counts relative to the largest recorded number of its
kind. The reference's float32 outputs differ from its equations by up to 2e-6 of that. The model
therefore runs in float64 by default: a difference is then the reference's rounding or an error, not
the sum of two roundings.
"""

import argparse
import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from jaxrec.errors import WeightsError
from jaxrec.interop.persrec import ReferenceModel, load
from jaxrec.items import table
from jaxrec.objective import losses
from jaxrec.types import Array, Params
from jaxrec.untrusted import json_objects
from jaxrec.untrusted.arrays import read_npz

TOLERANCE = 1e-5
_NEEDED = ("config", "items", "mask", "hidden", "seq", "scores")
_NEEDED_FOR_LOSS = ("neg", "loss", "grad_item_embedding")
_COMPARED = ("hidden", "scores", "loss", "grad_item_embedding")
_WEIGHTS = "param/"


def read(path: str) -> dict[str, np.ndarray]:
    """The arrays of a file. Raises ValueError for another kind of file and for missing keys."""
    if not Path(path).is_file():
        raise WeightsError(f"{path}: no such file")
    arrays = read_npz(
        Path(path), lambda why: WeightsError(f"{path}: not a readable .npz file ({why})")
    )
    missing = [key for key in _NEEDED if key not in arrays]
    weights = [key for key in arrays if key.startswith(_WEIGHTS)]
    if not weights:
        missing.append(f"{_WEIGHTS}...")
    elif not any(key.endswith("user_embedding") for key in weights):
        missing += [key for key in _NEEDED_FOR_LOSS if key not in arrays]
    if missing:
        raise ValueError(f"{path}: missing keys {', '.join(missing)}; found {', '.join(arrays)}")
    return arrays


def compare(arrays: Mapping[str, np.ndarray], dtype: str = "float64") -> dict[str, float]:
    """Largest difference of every recorded quantity, relative to its largest recorded number.

    arrays: of `read`. Hidden states are compared at valid positions only. dtype: of the model's
    arithmetic, float64 or float32. Raises ValueError when weights, inputs or outputs do not have
    the shapes of the file's own configuration.
    """
    state = {k.removeprefix(_WEIGHTS): v for k, v in arrays.items() if k.startswith(_WEIGHTS)}
    config = json_objects.parse(
        str(arrays["config"]),
        "config",
        lambda why: WeightsError(f"config is no JSON object ({why})"),
    )
    reference, params = load(state, config)
    model = dataclasses.replace(reference.model, dtype=dtype)
    reference = dataclasses.replace(reference, model=model)
    _check_inputs(arrays, reference)
    # on accelerators the default product of float32 matrices is coarser than float32
    with jax.enable_x64(dtype == "float64"), jax.default_matmul_precision("highest"):
        params = jax.tree.map(lambda a: a.astype(dtype), params)
        outputs = jax.jit(lambda p: _outputs(arrays, reference, p))(params)
    differences = {}
    for key in (key for key in _COMPARED if key in outputs):
        _check_shape(key, arrays[key].shape, outputs[key].shape)
        value, recorded = np.asarray(outputs[key], np.float64), arrays[key]
        if key == "hidden":
            valid = reference.layout.valid(reference.lengths(arrays["mask"]))
            value, recorded = value[valid], recorded[valid]
        differences[key] = _relative_difference(value, recorded)
    return differences


def _relative_difference(value: np.ndarray, recorded: np.ndarray) -> float:
    """The largest difference over the largest recorded number; absolute where all are zero."""
    largest = float(np.max(np.abs(recorded)))
    return float(np.max(np.abs(value - recorded))) / (largest or 1.0)


def _check_inputs(arrays: Mapping[str, np.ndarray], reference: ReferenceModel) -> None:
    rows, slots = reference.num_items + 1, reference.layout.num_items
    users = len(np.atleast_1d(arrays["mask"]))
    _check_shape("mask", arrays["mask"].shape, (users, slots))
    _check_shape("items", arrays["items"].shape, (users, slots + 1))
    _check_shape("seq", arrays["seq"].shape, (*arrays["seq"].shape[:1], slots))
    for key in ("items", "seq", "neg"):
        ids = arrays.get(key)
        if ids is not None and (ids.dtype.kind not in "iu" or ids.min() < 0 or ids.max() >= rows):
            raise ValueError(
                f"{key} has {ids.dtype} {ids.min()}..{ids.max()}: item ids 0..{rows - 1} are needed"
            )


def _check_shape(key: str, shape: tuple[int, ...], needed: tuple[int, ...]) -> None:
    if shape != needed:
        raise ValueError(f"{key} has shape {shape}, the file's config and inputs need {needed}")


def _outputs(
    arrays: Mapping[str, np.ndarray], reference: ReferenceModel, params: Params
) -> dict[str, Array]:
    """The model's outputs for a file's inputs, by the file's keys."""
    model = reference.build()

    def encode(ids: np.ndarray, mask: np.ndarray) -> jax.Array:
        lengths = jnp.asarray(reference.lengths(mask))
        times = jnp.zeros((len(ids), model.layout.num_items + 1), jnp.int32)
        return model.forward(params, jnp.asarray(ids, jnp.int32), model.layout, lengths, times)[0]

    items, seq, mask = arrays["items"], arrays["seq"], arrays["mask"]
    last = model.queries(params, encode(seq, seq != 0)[:, -1]).vectors
    outputs: dict[str, Array] = {
        "hidden": encode(items[:, :-1], mask),
        "scores": last @ model.item_vectors(params).vectors.T,
    }
    if not model.layout.num_tokens:
        loss, gradients = jax.value_and_grad(
            lambda p: nce_loss(reference, p, items, mask, arrays["neg"])
        )(params)
        outputs["loss"] = loss
        outputs["grad_item_embedding"] = gradients[table.ITEM][table.EMBEDDING]
    return outputs


def nce_loss(
    reference: ReferenceModel, params: Params, items: Array, mask: Array, negatives: Array
) -> jax.Array:
    """The reference's loss of plain HSTU (`loss = "nce"`, negatives shared by the batch).

    items: [B, N + 1], position i reads items[:, i] and predicts items[:, i + 1]; mask: [B, N] valid
    positions; negatives: item ids of any shape, each compared with every position. Returns the mean
    over valid positions. As in the reference, a negative is masked by its cosine to the positive
    alone (padding rows count), and row 0 of the item table gets no gradient. Raises ValueError for
    a layout with tokens: there the reference predicts tokens too.
    """
    if reference.layout.num_tokens:
        raise ValueError(
            "a model with tokens has no reference loss here: the reference trains items to "
            "predict tokens, which is not reproduced; use recommender.Model.loss"
        )
    model = reference.build()
    rows = params[table.ITEM][table.EMBEDDING]
    rows = jnp.concatenate([jax.lax.stop_gradient(rows[:1]), rows[1:]])
    params = {**params, table.ITEM: {table.EMBEDDING: rows}}
    items = jnp.asarray(items, jnp.int32)
    y, _ = model.forward(
        params,
        items[:, :-1],
        reference.layout,
        jnp.asarray(reference.lengths(mask)),
        jnp.zeros(items.shape, jnp.int32),
    )
    vectors = model.item_vectors(params).vectors.astype(jnp.float32)  # the losses are float32
    negative_ids = jnp.asarray(negatives, jnp.int32).reshape(-1)
    contrast = losses.Contrast(
        x=model.queries(params, y).vectors.reshape(-1, y.shape[-1]),
        positives=vectors[items[:, 1:].reshape(-1)],
        negatives=vectors[negative_ids],
        targets=jnp.ones(items[:, 1:].size, jnp.int32),
        negative_ids=jnp.full(negative_ids.shape, -1, jnp.int32),  # ids mask nothing, cosines do
        weights=jnp.asarray(mask != 0, jnp.float32).reshape(-1),
    )
    total, weight = losses.sampled_softmax(
        contrast, scale=model.scale(params), false_negative=reference.loss.false_negative
    )
    return total / weight


def main(argv: Sequence[str] | None = None) -> int:
    """Prints one line per compared quantity; 0 when none exceeds the tolerance, else 1."""
    parser = argparse.ArgumentParser(
        prog="python -m jaxrec.interop.golden",
        description="Compares this project's model with recorded outputs of the reference HSTU.",
    )
    parser.add_argument("file", help=".npz with the reference's config, weights and outputs")
    parser.add_argument(
        "--dtype", choices=("float64", "float32"), default="float64", help="arithmetic of the model"
    )
    flags = parser.parse_args(argv)
    try:
        differences = compare(read(flags.file), flags.dtype)
    except ValueError as error:
        parser.exit(2, f"error: {error}\n")
    equal = True
    for key, value in differences.items():
        close = value <= TOLERANCE  # false for NaN
        equal &= close
        verdict = "ok" if close else f"above {TOLERANCE:g}"
        print(f"{key:<20} relative difference {value:.3e}  {verdict}")
    return 0 if equal else 1


if __name__ == "__main__":
    raise SystemExit(main())
