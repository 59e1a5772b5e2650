"""Initial parameters of which some are known: pretrained weights, vectors of texts, popularity."""

from collections.abc import Callable, Mapping

import jax
import numpy as np

from jaxrec.runtime import leaves
from jaxrec.types import Params

Init = Callable[[jax.Array], Params]


def starting_from(init: Init, known: Mapping[str, np.ndarray]) -> Init:
    """`init` with the leaves of `known` (path -> value) instead of random ones.

    The values are fetched from host memory when the parameters are made; they are no constants
    of the compiled program. The result raises ValueError with every path that the model does not
    have and every shape that differs.

    >>> from jaxrec.model.initial import starting_from
    >>> init = lambda rng: {"item": {"bias": jax.numpy.zeros(3)}}
    >>> starting_from(init, {"item/bias": np.arange(3)})(jax.random.key(0))["item"]["bias"]
    Array([0., 1., 2.], dtype=float32)
    """

    def start(rng: jax.Array) -> Params:
        params = init(rng)
        flat = leaves.flatten(params)
        problems = [f"{path}: not in the model" for path in known if path not in flat]
        problems += [
            f"{path} has shape {np.shape(value)}, the model's is {tuple(flat[path].shape)}"
            for path, value in known.items()
            if path in flat and tuple(flat[path].shape) != np.shape(value)
        ]
        if problems:
            raise ValueError("given parameters do not fit the model:\n  " + "\n  ".join(problems))
        for path, value in known.items():
            shape = jax.ShapeDtypeStruct(flat[path].shape, flat[path].dtype)
            flat[path] = jax.pure_callback(lambda v=value, s=shape: np.asarray(v, s.dtype), shape)
        return jax.tree.unflatten(jax.tree.structure(params), list(flat.values()))

    return start
