"""Sequential recommendation over lifelong user histories, in JAX.

A long history is compressed, segment by segment, into the keys and values of a few learnable
tokens (PerSRec, arXiv 2601.03479): a small user state that grows as events arrive.

>>> import jax, numpy as np, jaxrec
>>> layout = jaxrec.SegmentLayout.stream(segment_size=4, tokens=2, max_segments=3)
>>> config = jaxrec.ModelConfig(backbone="sasrec", width=16, layers=2, heads=2)
>>> model = jaxrec.build(config, jaxrec.LossConfig(), layout, num_items=50)
>>> params = model.init(jax.random.key(0))
>>> items = np.arange(1, 11, dtype=np.int32)[None]  # one user, ten events, oldest first
>>> times = 3600 * items
>>> state = jaxrec.states.compress(model, params, items, times, counts=np.asarray([10]))
>>> int(state.segments[0]), int(state.pending[0])  # two segments of 4 compressed, 2 events recent
(2, 2)
>>> state = jaxrec.states.extend(model, params, state, items[:, :3], times[:, :3], np.asarray([3]))
>>> int(state.segments[0]), int(state.pending[0])
(3, 1)
>>> scores, ids = jaxrec.states.recommend(model, params, state, k=3)
>>> ids.shape
(1, 3)

From a data frame to recommendations, `fit` and `load` are shorter: docs/python.md.

Names are imported when they are used, so that `import jaxrec` costs nothing.
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jaxrec import ranking
    from jaxrec.api import fit, load
    from jaxrec.config import Config, LayoutConfig, LossConfig, ModelConfig, TrainConfig, validate
    from jaxrec.errors import JaxrecError
    from jaxrec.layout import SegmentLayout
    from jaxrec.model import states
    from jaxrec.model.recommender import Model, build
    from jaxrec.serving import Recommender
    from jaxrec.session import Session
    from jaxrec.state_store import UserStateStore
    from jaxrec.types import UserState

__all__ = [
    "Config",
    "JaxrecError",
    "LayoutConfig",
    "LossConfig",
    "Model",
    "ModelConfig",
    "Recommender",
    "SegmentLayout",
    "Session",
    "TrainConfig",
    "UserState",
    "UserStateStore",
    "build",
    "fit",
    "load",
    "ranking",
    "states",
    "validate",
]

_HOMES = {
    "jaxrec.api": ("fit", "load"),
    "jaxrec.config": (
        "Config",
        "LayoutConfig",
        "LossConfig",
        "ModelConfig",
        "TrainConfig",
        "validate",
    ),
    "jaxrec.errors": ("JaxrecError",),
    "jaxrec.layout": ("SegmentLayout",),
    "jaxrec.model.recommender": ("Model", "build"),
    "jaxrec.serving": ("Recommender",),
    "jaxrec.session": ("Session",),
    "jaxrec.state_store": ("UserStateStore",),
    "jaxrec.types": ("UserState",),
}
_MODULES = {"states": "jaxrec.model.states"}


def __getattr__(name: str) -> object:
    if name in _MODULES:
        return importlib.import_module(_MODULES[name])
    for home, names in _HOMES.items():
        if name in names:
            return getattr(importlib.import_module(home), name)
    # a submodule, such as jaxrec.ranking
    try:
        return importlib.import_module(f"jaxrec.{name}")
    except ModuleNotFoundError:
        raise AttributeError(f"module 'jaxrec' has no attribute {name!r}") from None


def __dir__() -> list[str]:
    return sorted(__all__)
