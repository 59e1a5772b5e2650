"""Bytes of a stored user state, and a digest of the scores that are computed from states.

    python -m benchmarks.state_bytes --output=results/state_bytes/after.json

Run at two revisions it tells whether a change of what a state keeps moved a score: digests of
equal scores are equal, to the last bit. Parameters are random ones of trained size (initial ones
plus noise), histories random ones that end anywhere in a segment.
"""

import argparse
import dataclasses
import functools
import hashlib
import pathlib

import jax
import numpy as np

from configs import completejourney_hstu, completejourney_sasrec, pod_hstu
from jaxrec.benchmark import timing
from jaxrec.config import Config, LayoutConfig, ModelConfig
from jaxrec.layout import SegmentLayout
from jaxrec.model import recommender, states
from jaxrec.model.recommender import Model
from jaxrec.serving.state_rows import row_spec
from jaxrec.types import Json, Params

RECIPES = {
    "completejourney_hstu": completejourney_hstu,
    "completejourney_sasrec": completejourney_sasrec,
    "pod_hstu": pod_hstu,
}
ITEMS, USERS = 500, 16  # of the models whose scores are compared


def bytes_of(config: Config) -> Json:
    """Bytes of a row by column, float32, without counters of history items."""
    model_config = dataclasses.replace(
        config.model, dtype="float32", repeat_half_lives=(), repeat_half_times=()
    )
    layout = SegmentLayout.from_config(config.layout)
    spec = row_spec(recommender.build(model_config, config.loss, layout, ITEMS), "float32", 0)
    columns = {field.name: field.nbytes for field in spec.fields if field.nbytes}
    vectors = sum(size for name, size in columns.items() if name.startswith("tokens."))
    return {
        "layers": model_config.layers,
        "width": model_config.width,
        "tokens": layout.segments[0][1] * layout.max_segments,
        "row_bytes": spec.row_bytes,
        "token_bytes": vectors,
        "columns": columns,
    }


def of_trained_size(model: Model) -> Params:
    """Initial parameters with noise: at the start all scores are nearly the same."""
    leaves, tree = jax.tree.flatten(model.init(jax.random.key(0)))
    keys = jax.random.split(jax.random.key(1), len(leaves))
    return jax.tree.unflatten(
        tree,
        [x + 0.3 * jax.random.normal(key, x.shape) for x, key in zip(leaves, keys, strict=True)],
    )


def scores_of(backbone: str) -> Json:
    """Digest of scores [USERS, ITEMS + 1] from states that are made in one call and extended."""
    config = ModelConfig(backbone=backbone, width=32, layers=3, heads=2)
    layout = SegmentLayout.from_config(LayoutConfig(segment_size=10, tokens=3, max_segments=4))
    model = recommender.build(config, Config().loss, layout, ITEMS)
    params = of_trained_size(model)
    rng = np.random.default_rng(0)
    items = rng.integers(1, ITEMS + 1, (USERS, 90)).astype(np.int32)
    times = np.sort(rng.integers(0, 10**8, (USERS, 90)), axis=1).astype(np.int32)
    counts = rng.integers(1, 61, USERS).astype(np.int32)
    more = rng.integers(0, 31, USERS).astype(np.int32)
    state = jax.jit(functools.partial(states.compress, model))(
        params, items[:, :60], times[:, :60], counts
    )
    state = jax.jit(functools.partial(states.extend, model))(
        params, state, items[:, 60:], times[:, 60:], more
    )
    scores = np.asarray(jax.jit(functools.partial(states.score, model))(params, state))
    return {
        "shape": list(scores.shape),
        "standard_deviation": float(scores.std()),
        "sha256": hashlib.sha256(scores.astype("<f4").tobytes()).hexdigest(),
    }


def main() -> None:
    """Writes the JSON of --output."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.state_bytes",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--output", required=True, type=pathlib.Path, help="JSON file")
    args = parser.parse_args()
    rows = {
        "states": {name: bytes_of(recipe.get_config()) for name, recipe in RECIPES.items()},
        "scores": {name: scores_of(name) for name in ("hstu", "sasrec", "llama")},
    }
    timing.save(timing.report("benchmarks.state_bytes", rows), str(args.output))


if __name__ == "__main__":
    main()
