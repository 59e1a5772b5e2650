"""Depth: equal layers under `nn.scan`, with weights that a mesh may split and recomputation."""

import functools
from typing import Any, Protocol

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from jaxrec.config import ModelConfig
from jaxrec.types import Params

# float64 (under jax.enable_x64) separates rounding from differences; no run can choose it
DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16, "float64": jnp.float64}

# what the backward pass finds instead of computing it again (`model.remat_keep`)
KEPT: dict[str, Any] = {
    "nothing": None,
    "products": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
}


class WeightPlacement(Protocol):
    """Where dense parameters live, for modules that know no mesh (see `jaxrec.runtime.mesh`)."""

    def splits_weights(self) -> bool:
        """Whether devices hold parts of a parameter; if not, `gather` is not called."""
        ...

    def gather(self, params: Params, layers: int, dtype: DTypeLike) -> Params:
        """One layer's whole parameters from their parts.

        params: leaves without the axis of the `layers`. Split leaves come out as `dtype`.
        """
        ...

    def constrain(self, x: jax.Array) -> jax.Array:
        """The same activations [B, ...], kept with their users."""
        ...


def stack_layers(
    layer: type[nn.Module],
    config: ModelConfig,
    placement: WeightPlacement | None,
    *,
    initializing: bool,
    in_axes: tuple[Any, ...],
    unroll: int = 1,
) -> Any:
    """The module class of `config.layers` layers, parameters stacked along a leading axis.

    layer: called as `(carry, *inputs) -> (carry, outputs)`; in_axes: of the inputs, a prefix tree
    of 0 (one entry per layer) and `nn.broadcast`. Weights that `placement` splits are gathered
    layer by layer; `model.remat` and `model.remat_keep` say what is computed again in the
    backward pass. unroll: layers per iteration.
    """
    if placement is not None and placement.splits_weights() and not initializing:
        gather = functools.partial(
            placement.gather, layers=config.layers, dtype=DTYPES[config.dtype]
        )
        layer = nn.map_variables(layer, "params", gather)
    if config.remat:  # around the gathering: weights are no residuals
        layer = nn.remat(layer, prevent_cse=False, policy=KEPT[config.remat_keep])
    return nn.scan(
        layer,
        variable_axes={"params": 0},
        split_rngs={"params": True, "dropout": True},
        in_axes=in_axes,
        length=config.layers,
        unroll=unroll,
    )


def with_users(placement: WeightPlacement | None, x: jax.Array) -> jax.Array:
    """`placement.constrain` where there is a placement."""
    return x if placement is None else placement.constrain(x)
