"""Bytes of a stored user state, and how far scores from states are from those of a masked forward.

    python -m benchmarks.state_bytes --output=results/state_bytes/after.json

Run at two revisions it tells what a change of what a state keeps saves and costs. Parameters are
random ones of trained size (initial ones plus noise), histories random ones that end anywhere in
a segment.
"""

import argparse
import dataclasses
import functools
import pathlib

import jax
import numpy as np

from configs import completejourney_hstu, completejourney_sasrec, pod_hstu
from jaxrec import ranking
from jaxrec.benchmark import timing
from jaxrec.config import Config, LayoutConfig, ModelConfig
from jaxrec.data import windows
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
ITEMS, USERS, EVENTS = 500, 64, 150  # of the models whose scores are compared


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


def distance_of(backbone: str) -> Json:
    """Scores [USERS, ITEMS + 1] from states, made in one call and extended, against one forward."""
    config = ModelConfig(backbone=backbone, width=64, layers=3, heads=2)
    cut = LayoutConfig(segment_size=25, tokens=4, max_segments=4)
    model = recommender.build(config, Config().loss, SegmentLayout.from_config(cut), ITEMS)
    params = of_trained_size(model)
    rng = np.random.default_rng(0)
    items = rng.integers(1, ITEMS + 1, (USERS, EVENTS)).astype(np.int32)
    times = np.sort(rng.integers(0, 10**8, (USERS, EVENTS)), axis=1).astype(np.int32)
    room = model.layout.num_items  # no segment drops off: one forward covers every event
    count = rng.integers(1, room, USERS)
    more = np.asarray([rng.integers(0, room - c + 1) for c in count])
    state = jax.jit(functools.partial(states.compress, model))(params, items, times, count)
    rest = np.minimum(count[:, None] + np.arange(EVENTS), EVENTS - 1)
    rest_items, rest_times = (np.take_along_axis(a, rest, 1) for a in (items, times))
    extend = jax.jit(functools.partial(states.extend, model))
    state = extend(params, state, rest_items, rest_times, more)
    by_state = np.asarray(jax.jit(functools.partial(states.score, model))(params, state))

    users, total = np.arange(USERS), count + more
    batch = windows.lay_out(
        windows.eval_cuts(users, total, total + 1, cut),
        model.layout,
        items.reshape(-1),
        times.reshape(-1),
        base=users * EVENTS,
    )
    rows, slots = np.nonzero(batch.weights)
    queries = jax.tree.map(lambda a: a[rows, slots], jax.jit(model.predict)(params, batch))
    by_forward = np.asarray(ranking.scores(queries, model.item_index(params), None))
    scored = np.s_[:, 1:]  # column 0 is padding
    distance = np.abs(by_state - by_forward)[scored]
    span = np.ptp(by_forward[scored])
    return {
        "largest_difference_of_range": float(distance.max() / span),
        "equal_to_the_last_bit": float((distance == 0).mean()),
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
        "scores": {name: distance_of(name) for name in ("hstu", "sasrec", "llama")},
    }
    timing.save(timing.report("benchmarks.state_bytes", rows), str(args.output))


if __name__ == "__main__":
    main()
