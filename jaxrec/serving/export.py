"""The model's functions as portable artifacts (`jax.export`), for servers without this package.

    <folder>/compress.bin   (params, items [b, M], times [b, M], counts [b]) -> state
    <folder>/extend.bin     (params, state, items [b, M], times [b, M], counts [b]) -> state
    <folder>/score.bin      (params, state, now [b]) -> scores float32 [b, V + 1]
    <folder>/recommend.bin  (params, state, now [b]) -> (scores [b, k], dense item ids [b, k])
    <folder>/params.npz     the parameters, by name
    <folder>/catalog.npz    raw ids of dense ids, popularity, time origin
    <folder>/signature.json shapes and dtypes of all of these

Parameters and states are flat dicts of arrays, the batch b is symbolic (any size), and the
artifacts run on cpu, cuda and tpu: `jax.export.deserialize(bytes).call(params, ...)`. Items are
dense ids, times int32 seconds from the catalog's origin.
"""

import json
import os
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from jaxrec.model import states
from jaxrec.runtime import leaves, workdir
from jaxrec.serving.service import Recommender
from jaxrec.serving.write_errors import as_store_errors
from jaxrec.types import KV, Array, Json, Params, TokenOutputs, TokenState, Tree, UserState

PLATFORMS = ("cpu", "cuda", "tpu")
SIGNATURE = "signature.json"
Arrays: TypeAlias = dict[str, Array]  # a flat state, or parameters by name


def flat_state(state: UserState) -> Arrays:
    """A batch of states as a dict: `tokens.k` [L - 1, B, C, N, H] ..., `events` [B]."""
    tokens = {
        f"tokens.{name}": value
        for name, value in state.tokens._asdict().items()
        if value is not None
    }
    return tokens | {name: value for name, value in state._asdict().items() if name != "tokens"}


def nested_state(arrays: Mapping[str, Array]) -> UserState:
    """The inverse of `flat_state`."""
    tokens: TokenState
    if "tokens.k" in arrays:
        k, v, times, valid = (arrays[f"tokens.{name}"] for name in ("k", "v", "times", "valid"))
        tokens = KV(k, v, arrays.get("tokens.inputs"), times, valid)
    else:
        tokens = TokenOutputs(*(arrays[f"tokens.{name}"] for name in TokenOutputs._fields))
    return UserState(tokens, *(arrays[name] for name in UserState._fields[1:]))


def functions(rec: Recommender, k: int) -> dict[str, Callable[..., Tree]]:
    """The exported functions over flat dicts; k: length of the lists of `recommend`."""
    model = rec.model
    like = jax.eval_shape(model.init, jax.random.key(0))
    names, tree = list(leaves.flatten(like)), jax.tree.structure(like)

    def unpack(params: Arrays) -> Params:
        nested: Params = jax.tree.unflatten(tree, [params[name] for name in names])
        return nested

    def compress(params: Arrays, items: Array, times: Array, counts: Array) -> Arrays:
        return flat_state(states.compress(model, unpack(params), items, times, counts))

    def extend(params: Arrays, state: Arrays, items: Array, times: Array, counts: Array) -> Arrays:
        nested = nested_state(state)
        return flat_state(states.extend(model, unpack(params), nested, items, times, counts))

    def score(params: Arrays, state: Arrays, now: Array) -> jax.Array:
        return states.score(model, unpack(params), nested_state(state), now)

    def recommend(params: Arrays, state: Arrays, now: Array) -> tuple[jax.Array, jax.Array]:
        whole = jnp.iinfo(jnp.int32).max  # one block, as the batch size is symbolic
        return states.recommend(model, unpack(params), nested_state(state), now, k, block=whole)

    return {"compress": compress, "extend": extend, "score": score, "recommend": recommend}


def save(
    rec: Recommender,
    folder: str | os.PathLike[str],
    *,
    events: int = 128,
    k: int = 100,
    platforms: Sequence[str] = PLATFORMS,
) -> pathlib.Path:
    """Writes the artifacts; returns the folder.

    events: M, new events of one call; longer histories are added in turn. k: length of the
    lists of `recommend` (at most the catalog). Raises ValueError when they are not positive,
    StoreError where a file cannot be written.
    """
    if events < 1 or k < 1:
        raise ValueError(f"events={events}, k={k}: positive numbers are needed")
    target = pathlib.Path(folder)
    with as_store_errors(target):
        target.mkdir(parents=True, exist_ok=True)
    k = min(k, rec.catalog.num_items)
    arguments, shapes = _arguments(rec, events)
    described: dict[str, Json] = {}
    for name, function in functions(rec, k).items():
        exported = jax.export.export(jax.jit(function), platforms=platforms)(*arguments[name])
        content = exported.serialize()
        file = target / f"{name}.bin"
        with as_store_errors(file), workdir.replacing(file) as stream:
            stream.write(content)
        described[name] = {
            "inputs": [str(aval) for aval in exported.in_avals],
            "outputs": [str(aval) for aval in exported.out_avals],
        }
    signature: Json = {
        "platforms": list(platforms),
        "events": events,
        "k": k,
        "functions": described,
        **shapes,
    }
    values = {name: np.asarray(x) for name, x in leaves.flatten(rec.params).items()}
    with as_store_errors(target):
        with workdir.replacing(target / "params.npz") as stream:
            np.savez(stream, **values)  # type: ignore[arg-type]
        rec.catalog.save(target)
        workdir.write_text(target / SIGNATURE, json.dumps(signature, indent=1) + "\n")
    return target


def _arguments(rec: Recommender, events: int) -> tuple[dict[str, tuple[Tree, ...]], Json]:
    """Abstract arguments of every function, and the shapes of parameters and state as JSON."""
    # The largest batch is a bound that the compiler may rely on.
    (batch,) = jax.export.symbolic_shape("b", constraints=[f"b <= {2**20}"])
    params = {n: _shape(x.shape, x.dtype) for n, x in leaves.flatten(rec.params).items()}
    state_shapes = _state_shapes(rec)
    state = {
        name: _shape([batch if size == -1 else size for size in shape], dtype)
        for name, (shape, dtype) in state_shapes.items()
    }
    sequences, counts = _shape((batch, events), jnp.int32), _shape((batch,), jnp.int32)
    arguments = {
        "compress": (params, sequences, sequences, counts),
        "extend": (params, state, sequences, sequences, counts),
        "score": (params, state, counts),
        "recommend": (params, state, counts),
    }
    shapes: Json = {
        "params": {n: [list(x.shape), str(x.dtype)] for n, x in params.items()},
        "state": {n: [shape, str(dtype)] for n, (shape, dtype) in state_shapes.items()},
    }
    return arguments, shapes


def _state_shapes(rec: Recommender) -> dict[str, tuple[list[int], np.dtype]]:
    """Name -> (shape, dtype) of a flat state; -1 is the batch."""
    of_one, of_two = (
        flat_state(jax.eval_shape(lambda batch=batch: states.empty(rec.model, batch)))
        for batch in (1, 2)
    )
    return {
        name: (
            [a if a == b else -1 for a, b in zip(leaf.shape, of_two[name].shape, strict=True)],
            leaf.dtype,
        )
        for name, leaf in of_one.items()
    }


def _shape(shape: Sequence[object], dtype: jnp.dtype | type[jnp.int32]) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(tuple(shape), dtype)
