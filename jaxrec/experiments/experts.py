"""What tokens hold: experts."""

import functools
import itertools
from collections.abc import Callable

import numpy as np

from jaxrec.config import Config
from jaxrec.data.prepared import Prepared
from jaxrec.evaluation.intervals import Interval
from jaxrec.experiments import statistics
from jaxrec.experiments.attended import looked_at
from jaxrec.experiments.factors import concentration, explained, nmf
from jaxrec.experiments.runs import Lab, with_values
from jaxrec.experiments.table import Cell, Experiment, Line, Values, spread

COMMON = 300  # items that the factorisation looks at, the most frequent ones
SAME, OTHER, NEIGHBOUR = "same user", "another user", "another token of the segment"


def similarities(values: np.ndarray) -> dict[tuple[str, int], np.ndarray]:
    """(series, segments apart) -> cosine [U], mean over segments and tokens.

    values: [U, S, k, F]; what all users share, the mean over users and segments of each token,
    is taken off first.
    """
    count, tokens = values.shape[1:3]
    centred = values - values.mean((0, 1), keepdims=True)
    length = np.linalg.norm(centred, axis=-1, keepdims=True)
    unit = centred / np.where(length > 0, length, 1.0)
    others = np.roll(unit, 1, axis=0)
    found = {}
    for apart in range(1, count):
        for series, later in ((SAME, unit), (OTHER, others)):
            cosine = (unit[:, :-apart] * later[:, apart:]).sum(-1)
            found[series, apart] = cosine.mean((1, 2))
    if tokens > 1:
        gram = np.einsum("usif,usjf->usij", unit, unit)
        apart_from_itself = gram.sum((2, 3)) - np.trace(gram, axis1=2, axis2=3)
        found[NEIGHBOUR, 0] = apart_from_itself.mean(1) / (tokens * (tokens - 1))
    return found


def distances(size: int) -> list[tuple[int, int]]:
    """[first, last] of buckets of distance, 1 the newest event of the segment: 1, 2, 3-4, 5-8..."""
    edges = [0, 1]
    while edges[-1] < size:
        edges.append(min(2 * edges[-1], size))
    return [(low + 1, high) for low, high in itertools.pairwise(edges)]


def experts(lab: Lab) -> Experiment:
    base = with_values(lab.base, model__state="kv")
    layout, samples = base.layout, lab.config.experiments.bootstrap

    @functools.cache
    def found(seed: int) -> dict[str, np.ndarray]:
        config = with_values(base, seed=seed)

        def make() -> dict[str, np.ndarray]:
            session = lab.session(config)
            return looked_at(session, lab.users(session.prepared))

        return lab.kept(config, "experts", make)

    def interval(of_seed: Callable[[dict[str, np.ndarray]], np.ndarray]) -> Interval:
        """of_seed: what was found for a seed -> a number per user."""
        table = np.stack([of_seed(found(s)) for s in lab.seeds])
        return statistics.interval(table.astype(np.float64), samples)

    def similar(series: str, apart: int) -> Cell:
        name = f"{series}, {apart} apart"

        def make() -> Values:
            value = interval(lambda one: similarities(one["values"])[series, apart])
            facts = {"part": "similarity", "name": name, "series": series, "segments_apart": apart}
            return {**facts, **spread("cosine", value)}

        return Cell(name, make)

    def paid(token: int, first: int, last: int) -> Cell:
        name = f"token {token + 1}, {first} to {last} events before"

        def make() -> Values:
            def on_these(one: dict[str, np.ndarray]) -> np.ndarray:
                newest_first = one["paid"][:, :, token, ::-1]
                return newest_first[..., first - 1 : last].sum(-1).mean(1)

            def times_uniform(one: dict[str, np.ndarray]) -> np.ndarray:
                every = one["paid"][:, :, token].sum(-1).mean(1)
                return on_these(one) / every * layout.segment_size / (last - first + 1)

            return {
                "part": "attention",
                "name": name,
                "series": f"token {token + 1}",
                "distance": (first + last) / 2,
                **spread("times_uniform", interval(times_uniform)),
                **spread("share", interval(on_these)),
            }

        return Cell(name, make)

    def earlier(token: int) -> Cell:
        name = f"token {token + 1}, tokens of earlier segments"

        def make() -> Values:
            value = interval(lambda one: one["earlier"][:, 1:, token].mean(1))
            facts = {"part": "attention", "name": name, "series": f"token {token + 1}"}
            return {**facts, **spread("share", value)}

        return Cell(name, make)

    lags = range(1, layout.max_segments)
    cells = [similar(NEIGHBOUR, 0)] if layout.tokens > 1 else []
    cells += [similar(series, apart) for series in (SAME, OTHER) for apart in lags]
    for token in range(layout.tokens):
        cells += [paid(token, *bucket) for bucket in distances(layout.segment_size)]
        cells += [earlier(token)] if layout.max_segments > 1 else []
    return Experiment(
        "experts",
        "What tokens hold",
        "Do tokens tell a user from others, what do they look at, and does each have its own task?",
        "Users with all segments. Similarity: cosine of a token's values (all layers, their mean "
        "over users taken off) between segments of the same user, and of two users. Attention: a "
        "token's absolute weights, mean over layers; `times uniform` is 1 for an event that gets "
        "as much as the mean event of the segment. Factors: attention of each user's tokens on "
        f"the {COMMON} most frequent items, rows of equal weight, factorised by multiplicative "
        "updates for the squared error (Lee and Seung 2001).",
        "`same user` above `another user`: tokens hold what stays true of a user. Lines of "
        "tokens that differ, and components that are one token's: tokens divide the work; "
        "`concentration` is the largest share of a component that one token has, beside that of "
        "tokens shuffled within users.",
        cells + _factor_cells(lab, base, found),
        [
            Line(
                "Similarity of a user's tokens",
                "segments_apart",
                "cosine",
                "segments apart",
                "cosine",
            ),
            Line(
                "What tokens look at",
                "distance",
                "times_uniform",
                "events before the token",
                "attention / uniform",
                log=True,
                zero=True,
            ),
            Line(
                "Components of what tokens look at",
                "token",
                "loading",
                "token",
                "share of the component",
                series="component",
                kind="heat",
            ),
        ],
    )


def _factor_cells(
    lab: Lab, base: Config, found: Callable[[int], dict[str, np.ndarray]]
) -> list[Cell]:
    """One row for each component and token of the first seed, then one for all seeds."""
    number, tokens = lab.config.experiments.components, base.layout.tokens
    every = "all components, mean over seeds"

    @functools.cache
    def factors(seed: int) -> tuple[np.ndarray, ...]:
        matrix, common = item_matrix(found(seed)["items"], found(seed)["paid"])
        weights, parts, _ = nmf(matrix, number)
        order = np.argsort(-weights.sum(0) * parts.sum(1), kind="stable")
        return matrix, common, weights[:, order], parts[order]

    def component(index: int, token: int) -> Cell:
        name = f"component {index + 1}, token {token + 1}"

        def make() -> Values:
            _, common, weights, parts = factors(lab.seeds[0])
            mass = weights * parts.sum(1)
            mine = mass[:, index].reshape(-1, tokens).sum(0)
            row: Values = {
                "part": "factors",
                "name": name,
                "component": f"component {index + 1}",
                "token": token + 1,
                "loading": mine[token] / max(mine.sum(), 1e-12),
            }
            if token == 0:
                prepared = lab.session(with_values(base, seed=lab.seeds[0])).prepared
                top = common[np.argsort(-parts[index], kind="stable")[:3]]
                row["mass"] = mine.sum() / mass.sum()
                row["typical_items"] = ", ".join(item_name(prepared, int(item)) for item in top)
            return row

        return Cell(name, make)

    def summary() -> Values:
        reached: dict[str, list[float]] = {}
        for seed in lab.seeds:
            matrix, _, weights, parts = factors(seed)
            mass = weights * parts.sum(1)
            rng = np.random.default_rng(seed)
            shuffled = rng.permuted(mass.reshape(-1, tokens, number), axis=1)
            for name, value in (
                ("explained", explained(matrix, weights, parts)),
                ("concentration", concentration(mass, tokens)),
                ("concentration_shuffled", concentration(shuffled.reshape(mass.shape), tokens)),
            ):
                reached.setdefault(name, []).append(value)
        means = {name: float(np.mean(values)) for name, values in reached.items()}
        return {"part": "factors", "name": every, **means}

    cells = [component(c, t) for c in range(number) for t in range(tokens)]
    return [*cells, Cell(every, summary)]


def item_matrix(items: np.ndarray, paid: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """[U k, X] attention of each user's tokens on common items, rows summing to 1; their ids [X].

    items: [U, S, n]; paid: [U, S, k, n]. Rows without any of the items are 0.
    """
    users, count, tokens, size = paid.shape
    ids, counts = np.unique(items, return_counts=True)
    common = np.sort(ids[np.argsort(-counts, kind="stable")[:COMMON]])
    place = np.minimum(np.searchsorted(common, items), len(common) - 1)
    column = np.where(common[place] == items, place, len(common))
    every = np.zeros((users, tokens, len(common) + 1))
    shape = (users, count, tokens, size)
    row, token = np.arange(users)[:, None, None, None], np.arange(tokens)[None, None, :, None]
    index = tuple(np.broadcast_to(a, shape) for a in (row, token, column[:, :, None]))
    np.add.at(every, index, paid)
    matrix = every[..., :-1].reshape(users * tokens, -1)
    total = matrix.sum(1, keepdims=True)
    return matrix / np.where(total > 0, total, 1.0), common


def item_name(prepared: Prepared, item: int) -> str:
    """The first text of an item where the source has texts, else its raw id."""
    for column in (prepared.texts or {}).values():
        if column[item]:
            return str(column[item])
    return str(prepared.vocabulary.ids[item - 1])
