"""Evaluation: every row (a recommender) ranks the same targets over the whole catalog.

Rows are named `compressed` (state, then the recent window), `masked` (one masked forward),
`without-tokens` (the same model shown only its recent window), `recent` and `full` (models trained
on the recent window alone and on full history) and the rules of `baselines`. `report` turns ranks
into metrics.
"""

import dataclasses
import functools
import time
from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType
from typing import TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from jaxrec import ranking
from jaxrec.config import Config
from jaxrec.errors import ConfigError
from jaxrec.evaluation import baselines, report
from jaxrec.evaluation.ranks import (
    History,
    HistoryItemsOf,
    Predict,
    Progress,
    Ranks,
    kinds_of,
    model_ranks,
    rule_ranks,
    targets_of,
    unranked,
)
from jaxrec.evaluation.report import Cost, Row
from jaxrec.model import cost, states
from jaxrec.model.recommender import Model
from jaxrec.runtime import mesh as mesh_lib
from jaxrec.types import Batch, Json, Params, Queries

Say: TypeAlias = Callable[[str], None]
Keep: TypeAlias = Callable[[dict[str, Ranks]], None]

PAUSE = 5.0  # seconds between two lines of progress
CHECKED_BATCHES = 4  # batches in which the scores of the two paths are compared
CHECKED_TARGETS = 32  # targets of each of these batches


@dataclasses.dataclass(frozen=True)
class TrainedModel:
    """A trained model and the batches that evaluate it.

    recent_batches: the same targets without complete segments and with the recent window as
    full as it can be, for the row `without-tokens` of a compressed model. mesh: the devices of
    params, when there are several; batches are split over them.
    """

    model: Model
    params: Params
    batches: Callable[[], Iterable[Batch]]
    recent_batches: Callable[[], Iterable[Batch]] | None = None
    mesh: Mesh | None = None


def own_rows(config: Config) -> tuple[str, ...]:
    """Names of the rows of the run's own model."""
    mode = config.layout.mode
    return ("compressed", "masked", "without-tokens") if mode == "compressed" else (mode,)


def beside(config: Config) -> tuple[str, ...]:
    """Names of the rows of other runs, which `eval.recent_workdir` and `eval.full_workdir` add."""
    folders = {"recent": config.eval.recent_workdir, "full": config.eval.full_workdir}
    own = own_rows(config)
    return tuple(name for name, folder in folders.items() if folder and name not in own)


def available(config: Config) -> tuple[str, ...]:
    """Names of the rows that a run can evaluate."""
    return (*own_rows(config), *beside(config), *baselines.rules(config.layout.recent))


def chosen(config: Config) -> tuple[str, ...]:
    """The rows of `eval.mode`; raises ConfigError naming what is allowed."""
    allowed = available(config)
    if config.eval.mode == "all":
        return allowed
    names = tuple(dict.fromkeys(part.strip() for part in config.eval.mode.split(",")))
    unknown = [name for name in names if name not in allowed]
    if unknown:
        hint = ""
        if unknown[0] in ("recent", "full"):
            mode = unknown[0]
            hint = (
                f"; {mode} needs eval.{mode}_workdir, the folder of a run with layout.mode={mode}"
            )
        raise ConfigError(
            f"eval.mode={config.eval.mode!r}: {unknown[0]!r} is no row of this run; allowed are "
            f"all, or names from {', '.join(allowed)}{hint}"
        )
    return names


def predictor(name: str, model: Model, mesh: Mesh | None = None) -> Predict:
    """The jitted prediction of a model row.

    mesh: users are split over its devices, and the queries replicated on all of them.
    """
    cached = functools.partial(states.predict_cached, model)
    predict: Predict = cached if name == "compressed" else model.predict
    if mesh is None:
        return jax.jit(predict)
    rows, everywhere = mesh_lib.batch_sharding(mesh), mesh_lib.replicated(mesh)

    def split(params: Params, batch: Batch) -> Queries:
        return predict(params, jax.lax.with_sharding_constraint(batch, rows))

    return jax.jit(split, in_shardings=(None, everywhere), out_shardings=everywhere)


def history_items(model: Model, mesh: Mesh | None = None) -> HistoryItemsOf:
    """The jitted `Model.history_items_before`, replicated on all devices of the mesh."""
    if mesh is None:
        return jax.jit(model.history_items_before)
    return jax.jit(model.history_items_before, out_shardings=mesh_lib.replicated(mesh))


def row_cost(name: str, model: Model) -> Cost:
    """Cost of one request to a model row, with the layout filled to its capacity."""
    config, layout = model.config, model.layout
    state = 0
    if name == "compressed":
        layout, state = layout.request(), cost.state_bytes(config, layout).total
    elif name == "without-tokens":
        layout = dataclasses.replace(layout, segments=layout.segments[-1:], cached=())
    return Cost(layout.pairs("visible"), cost.forward_flops(config, layout), state)


def path_difference(trained: TrainedModel) -> float:
    """Largest |score by state - score by masked forward| / largest |score|, over some targets."""
    model, params = trained.model, trained.params
    cached = predictor("compressed", model, trained.mesh)
    masked = predictor("masked", model, trained.mesh)
    index = model.item_index(params, trained.mesh)
    difference, largest = 0.0, 0.0
    for batch, _ in zip(trained.batches(), range(CHECKED_BATCHES), strict=False):
        rows, slots, _ = targets_of(batch)
        sample = slice(None, None, max(1, len(rows) // CHECKED_TARGETS))
        places = rows[sample], slots[sample]
        history = model.history_items_before(batch, *places)
        by_state, by_forward = (
            ranking.scores(
                jax.tree.map(lambda a: a[places], predict(params, batch)),  # noqa: B023
                index,
                history,
            )[:, 1:]
            for predict in (cached, masked)
        )
        # np.maximum propagates NaN, the builtin max does not
        gap = jnp.max(jnp.abs(by_state - by_forward), initial=0.0)
        difference = float(np.maximum(difference, gap))
        largest = float(np.maximum(largest, jnp.max(jnp.abs(by_forward), initial=0.0)))
    return difference / largest if largest else difference


def evaluate(
    config: Config,
    trained: TrainedModel,
    *,
    counts: np.ndarray,
    history: History,
    others: Mapping[str, TrainedModel] = MappingProxyType({}),
    returning: Callable[[int], np.ndarray] | None = None,
    say: Say = lambda line: None,
    keep: Keep = lambda ranks: None,
) -> Json:
    """All rows of `eval.mode` as a JSON value.

    counts: [V + 1] training events per item; others: models of the rows `beside`;
    returning: user -> bool per event, planted returns; say: gets lines of
    progress; keep: gets the ranks of all rows. Keys: `protocol`, `rows`, `comparisons` (paired
    ratios), `gap_closed` (with the rows compressed, recent and full), `paths` (how far the
    two ways to compute a compressed prediction are apart) and `full_history` (what a request would
    cost that model). Raises ConfigError for unknown row names and for a
    split without targets.
    """
    names = chosen(config)
    popularity = baselines.Popularity(counts)
    rules = baselines.rules(config.layout.recent)
    num_items = len(counts) - 1
    ranks: dict[str, Ranks] = {}
    rows: list[Row] = []
    kinds: dict[str, np.ndarray] = {}
    for name in names:
        say(f"evaluating {name}")
        progress, request_cost = _progress(name, say), None
        if name in rules:
            targets = next(iter(ranks.values()), None) or unranked(trained.batches())
            ranks[name] = rule_ranks(
                rules[name],
                popularity,
                history,
                targets,
                filter_seen=config.eval.filter_seen,
                progress=progress,
            )
        else:
            row_model = others.get(name, trained)
            ranks[name] = _ranks_of_row(name, row_model, config, history, progress)
            request_cost = row_cost(name, row_model.model)
        kinds = kinds or kinds_of(ranks[name], history, config.layout.recent, returning)
        rows.append(report.summarise(name, ranks[name], config, num_items, request_cost, kinds))
    keep(ranks)
    paths = None
    if "compressed" in ranks:
        say("comparing the scores of the two paths")
        paths = _paths(path_difference(trained), ranks)
    return report.to_json(
        {
            "protocol": report.protocol(
                config, num_items, users=rows[0].users, targets=rows[0].targets
            ),
            "rows": rows,
            "comparisons": report.compare(ranks, config),
            "gap_closed": report.gap_closed(ranks, config),
            "paths": paths,
            "full_history": report.full_history(config),
        }
    )


def _ranks_of_row(
    name: str, trained: TrainedModel, config: Config, history: History, progress: Progress
) -> Ranks:
    """Ranks of a model row."""
    model, batches = trained.model, trained.batches
    if name == "without-tokens" and trained.recent_batches is not None:
        batches = trained.recent_batches
    return model_ranks(
        predictor(name, model, trained.mesh),
        trained.params,
        model.item_index(trained.params, trained.mesh),
        batches(),
        history_items=history_items(model, trained.mesh),
        history=history if config.eval.filter_seen else None,
        chunk=config.eval.chunk,
        progress=progress,
    )


def _paths(difference: float, ranks: dict[str, Ranks]) -> Json:
    moved = None
    if "masked" in ranks:
        moved = int((ranks["compressed"].rank != ranks["masked"].rank).sum())
    targets = len(ranks["compressed"].rank)
    return {"score_difference": difference, "ranks_that_differ": moved, "targets": targets}


def _progress(name: str, say: Say) -> Progress:
    """Says how many targets of a row are done, every few seconds."""
    last = time.monotonic()

    def tell(targets: int) -> None:
        nonlocal last
        if time.monotonic() - last >= PAUSE:
            last = time.monotonic()
            say(f"evaluating {name}: {targets:,} targets done")

    return tell
