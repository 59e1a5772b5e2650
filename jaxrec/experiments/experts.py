"""What compressed tokens hold: the experiment `experts`."""

import itertools
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from jaxrec.data.prepared import Prepared
from jaxrec.evaluation.intervals import Interval
from jaxrec.experiments import statistics
from jaxrec.experiments.attended import Attended, attended
from jaxrec.experiments.factors import concentration, explained, nmf
from jaxrec.experiments.result_table import Cell, Experiment, Line, Values, spread
from jaxrec.experiments.runs import Lab, with_values

COMMON = 300  # most frequent items, the columns of the factorised matrix
SAME, OTHER, NEIGHBOUR = "same user", "another user", "another token of the segment"


def similarities(values: np.ndarray) -> dict[tuple[str, int], np.ndarray]:
    """Cosine [U] of token values by (series, segments apart), mean over segments and tokens.

    values: [U, S, k, F]. What all users share, the mean over users and segments of each token,
    is subtracted first.
    """
    count, tokens = values.shape[1:3]
    centred = values - values.mean((0, 1), keepdims=True)
    length = np.linalg.norm(centred, axis=-1, keepdims=True)
    unit = centred / np.where(length > 0, length, 1.0)
    others = np.roll(unit, 1, axis=0)
    cosines = {}
    for lag in range(1, count):
        for series, later in ((SAME, unit), (OTHER, others)):
            cosines[series, lag] = (unit[:, :-lag] * later[:, lag:]).sum(-1).mean((1, 2))
    if tokens > 1:
        gram = np.einsum("usif,usjf->usij", unit, unit)
        off_diagonal = gram.sum((2, 3)) - np.trace(gram, axis1=2, axis2=3)
        cosines[NEIGHBOUR, 0] = off_diagonal.mean(1) / (tokens * (tokens - 1))
    return cosines


def distances(size: int) -> list[tuple[int, int]]:
    """(first, last) distance of each bucket; 1 is the newest event of the segment.

    >>> distances(6)
    [(1, 1), (2, 2), (3, 4), (5, 6)]
    """
    edges = [0, 1]
    while edges[-1] < size:
        edges.append(min(2 * edges[-1], size))
    return [(low + 1, high) for low, high in itertools.pairwise(edges)]


class Factors(NamedTuple):
    """The factorised attention of one seed, components with most mass first.

    matrix: [U k, X] attention of users' tokens on common items; items: their ids [X].
    weights: [U k, c]; components: [c, X]; `weights @ components` is near `matrix`.
    """

    matrix: np.ndarray
    items: np.ndarray
    weights: np.ndarray
    components: np.ndarray

    @property
    def mass(self) -> np.ndarray:
        """Share of each component in each row, [U k, c]."""
        return self.weights * self.components.sum(1)


class _Study:
    """Makes the rows of `experts` from the runs of all seeds."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.base = with_values(lab.base, model__state="kv")
        self._attended: dict[int, Attended] = {}
        self._factors: dict[int, Factors] = {}

    def attended(self, seed: int) -> Attended:
        """What the tokens of a seed's run attend to."""
        if seed not in self._attended:
            config = with_values(self.base, seed=seed)

            def make() -> dict[str, np.ndarray]:
                session = self.lab.session(config)
                return attended(session, self.lab.users(session.prepared))._asdict()

            columns = self.lab.kept(config, "attention of tokens", make)
            self._attended[seed] = Attended(**columns)
        return self._attended[seed]

    def interval(self, per_user: Callable[[Attended], np.ndarray]) -> Interval:
        """Mean and interval over seeds and users of a number [U] per user."""
        table = np.stack([per_user(self.attended(seed)) for seed in self.lab.seeds])
        return statistics.interval(table.astype(np.float64), self.lab.config.experiments.bootstrap)

    def cells(self) -> list[Cell]:
        """All rows: similarity, attention, factors."""
        layout = self.base.layout
        lags = range(1, layout.max_segments)
        cells = [self.similarity(NEIGHBOUR, 0)] if layout.tokens > 1 else []
        cells += [self.similarity(series, lag) for series in (SAME, OTHER) for lag in lags]
        for token in range(layout.tokens):
            cells += [self.attention(token, *b) for b in distances(layout.segment_size)]
            cells += [self.earlier(token)] if layout.max_segments > 1 else []
        for index in range(self.lab.config.experiments.components):
            cells += [self.component(index, token) for token in range(layout.tokens)]
        return [*cells, self.summary()]

    def similarity(self, series: str, lag: int) -> Cell:
        """Cosine of token values `lag` segments apart."""
        name = f"{series}, {lag} apart"

        def make() -> Values:
            cosine = self.interval(lambda tokens: similarities(tokens.values)[series, lag])
            facts = {"part": "similarity", "name": name, "series": series, "segments_apart": lag}
            return {**facts, **spread("cosine", cosine)}

        return Cell(name, make)

    def attention(self, token: int, first: int, last: int) -> Cell:
        """Attention of a token on the events `first` to `last` before it."""
        name = f"token {token + 1}, {first} to {last} events before"
        size = self.base.layout.segment_size

        def share(tokens: Attended) -> np.ndarray:
            newest_first = tokens.attention[:, :, token, ::-1]
            return newest_first[..., first - 1 : last].sum(-1).mean(1)

        def times_uniform(tokens: Attended) -> np.ndarray:
            on_segment = tokens.attention[:, :, token].sum(-1).mean(1)
            return share(tokens) / on_segment * size / (last - first + 1)

        def make() -> Values:
            return {
                "part": "attention",
                "name": name,
                "series": f"token {token + 1}",
                "distance": (first + last) / 2,
                **spread("times_uniform", self.interval(times_uniform)),
                **spread("share", self.interval(share)),
            }

        return Cell(name, make)

    def earlier(self, token: int) -> Cell:
        """Attention of a token on the tokens of earlier segments."""
        name = f"token {token + 1}, tokens of earlier segments"

        def make() -> Values:
            share = self.interval(lambda tokens: tokens.earlier[:, 1:, token].mean(1))
            facts = {"part": "attention", "name": name, "series": f"token {token + 1}"}
            return {**facts, **spread("share", share)}

        return Cell(name, make)

    def factors(self, seed: int) -> Factors:
        """The factorised attention of a seed's run."""
        if seed not in self._factors:
            tokens = self.attended(seed)
            matrix, items = item_matrix(tokens.items, tokens.attention)
            weights, components, _ = nmf(matrix, self.lab.config.experiments.components)
            order = np.argsort(-weights.sum(0) * components.sum(1), kind="stable")
            self._factors[seed] = Factors(matrix, items, weights[:, order], components[order])
        return self._factors[seed]

    def component(self, index: int, token: int) -> Cell:
        """How much of a component is one token's, in the first seed's run."""
        name = f"component {index + 1}, token {token + 1}"
        seed, tokens = self.lab.seeds[0], self.base.layout.tokens

        def make() -> Values:
            factors = self.factors(seed)
            by_token = factors.mass[:, index].reshape(-1, tokens).sum(0)
            row: Values = {
                "part": "factors",
                "name": name,
                "component": f"component {index + 1}",
                "token": token + 1,
                "loading": by_token[token] / max(by_token.sum(), 1e-12),
            }
            if token == 0:
                prepared = self.lab.session(with_values(self.base, seed=seed)).prepared
                order = np.argsort(-factors.components[index], kind="stable")
                names = [item_name(prepared, int(item)) for item in factors.items[order[:3]]]
                row["mass"] = by_token.sum() / factors.mass.sum()
                row["typical_items"] = ", ".join(names)
            return row

        return Cell(name, make)

    def summary(self) -> Cell:
        """Fit and concentration of the factorisation, mean over seeds."""
        name, tokens = "all components, mean over seeds", self.base.layout.tokens

        def make() -> Values:
            by_seed: list[dict[str, float]] = []
            for seed in self.lab.seeds:
                factors = self.factors(seed)
                mass = factors.mass
                rng = np.random.default_rng(seed)
                shuffled = rng.permuted(mass.reshape(-1, tokens, mass.shape[1]), axis=1)
                by_seed.append(
                    {
                        "explained": explained(factors.matrix, factors.weights, factors.components),
                        "concentration": concentration(mass, tokens),
                        "concentration_shuffled": concentration(
                            shuffled.reshape(mass.shape), tokens
                        ),
                    }
                )
            means = {key: float(np.mean([row[key] for row in by_seed])) for key in by_seed[0]}
            return {"part": "factors", "name": name, **means}

        return Cell(name, make)


PLOTS = (
    Line(
        "Similarity of a user's tokens",
        x="segments_apart",
        y="cosine",
        x_label="segments apart",
        y_label="cosine",
    ),
    Line(
        "What tokens look at",
        x="distance",
        y="times_uniform",
        x_label="events before the token",
        y_label="attention / uniform",
        log=True,
        zero=True,
    ),
    Line(
        "Components of what tokens look at",
        x="token",
        y="loading",
        x_label="token",
        y_label="share of the component",
        series="component",
        kind="heat",
    ),
)


def experts(lab: Lab) -> Experiment:
    """What tokens hold: similarity between segments and users, attention, factors of it."""
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
        _Study(lab).cells(),
        PLOTS,
    )


def item_matrix(items: np.ndarray, attention: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(attention of each user's tokens on common items [U k, X], ids of these items [X]).

    items: [U, S, n]; attention: [U, S, k, n]. Rows sum to 1; rows without common items are 0.
    """
    users, count, tokens, size = attention.shape
    ids, counts = np.unique(items, return_counts=True)
    common = np.sort(ids[np.argsort(-counts, kind="stable")[:COMMON]])
    place = np.minimum(np.searchsorted(common, items), len(common) - 1)
    column = np.where(common[place] == items, place, len(common))
    sums = np.zeros((users, tokens, len(common) + 1))
    shape = (users, count, tokens, size)
    row, token = np.arange(users)[:, None, None, None], np.arange(tokens)[None, None, :, None]
    index = tuple(np.broadcast_to(a, shape) for a in (row, token, column[:, :, None]))
    np.add.at(sums, index, attention)
    matrix = sums[..., :-1].reshape(users * tokens, -1)
    total = matrix.sum(1, keepdims=True)
    return matrix / np.where(total > 0, total, 1.0), common


def item_name(prepared: Prepared, item: int) -> str:
    """The first text of an item, or its raw id where the data has no texts."""
    for column in (prepared.texts or {}).values():
        if column[item]:
            return str(column[item])
    return str(prepared.vocabulary.ids[item - 1])
