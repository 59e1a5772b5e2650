"""Quality of trained runs: the experiments length, tokens, segments, placement and longer."""

import dataclasses
from collections.abc import Sequence

from jaxrec.config import Config
from jaxrec.evaluation.ranks import Ranks
from jaxrec.experiments import measures
from jaxrec.experiments.measures import QUALITY, K, closed, columns
from jaxrec.experiments.result_table import Cell, Experiment, Line, Values
from jaxrec.experiments.runs import Lab, with_values
from jaxrec.layout import SegmentLayout
from jaxrec.model import cost


def ranks_of(lab: Lab, config: Config, row: str = "") -> list[Ranks]:
    """Ranks by seed of the targets that count; arguments as of `measures.by_seed`."""
    return measures.counted(lab, measures.by_seed(lab, config, row))


def measured(lab: Lab, config: Config, row: str, against: Config | None = None) -> Values:
    """Columns of a run over the seeds, with its ratio to the full-history run `against`.

    config: of any seed; row: see `Lab.ranks`.
    """
    full = None if against is None else ranks_of(lab, against)
    return columns(ranks_of(lab, config, row), lab.config.experiments.bootstrap, full)


def price(config: Config, row: str, against: Config | None = None) -> Values:
    """What a request costs, also as a share of full history's cost.

    row: in which the run answers (see `Lab.ranks`).
    against: run whose events the full history covers, default `config`.
    """
    layout = SegmentLayout.from_config(config.layout)
    if row == "without-tokens":
        layout = dataclasses.replace(layout, segments=layout.segments[-1:])
    covered = (against or config).layout.history
    whole = cost.forward_flops(config.model, SegmentLayout.full(covered))
    if row == "compressed":
        flops, costs = _price_of_state(config, layout, whole)
    else:  # a request reads raw events
        flops = cost.forward_flops(config.model, layout)
        costs = {"state_bytes": cost.EVENT_BYTES * layout.num_items}
    return {
        "history": layout.num_items,
        "mflop_request": flops / 1e6,
        "flops_of_full": flops / whole,
        **costs,
    }


def _price_of_state(config: Config, layout: SegmentLayout, whole: int) -> tuple[int, Values]:
    """FLOPs of a request to a state, and what it takes to keep the state.

    whole: FLOPs of a request with full history. Extending is counted per event, so that
    `amortised_of_full` is the share where every event comes with one request.
    """
    flops = cost.forward_flops(config.model, layout.request())
    extend = cost.forward_flops(config.model, layout.extension()) / config.layout.segment_size
    kept = cost.state_bytes(config.model, layout)
    return flops, {
        "mflop_extend_per_event": extend / 1e6,
        "amortised_of_full": (flops + extend) / whole,
        "state_bytes": kept.total,
        "token_bytes": kept.vectors,
        "remembered_bytes": kept.remembered,
        "pending_bytes": kept.pending,
    }


def _cell(
    lab: Lab,
    name: str,
    config: Config,
    facts: Values,
    against: Config | None = None,
    recent: Config | None = None,
) -> Cell:
    """The row of a run, compared with the full-history run `against`.

    recent: run of the recent window alone; the row then has the share of the gap that it closes.
    """
    row = config.layout.mode

    def make() -> Values:
        values = {"name": name, **facts, **price(config, row, against)}
        values |= measured(lab, config, row, against)
        if recent is not None and against is not None:
            ends = ranks_of(lab, recent), ranks_of(lab, against)
            values |= closed(ranks_of(lab, config), *ends, lab.config.experiments.bootstrap)
        return values

    return Cell(name, make, lambda: ranks_of(lab, config))


NO_TOKENS = {"model__token_input": "learned", "model__token_distance": False}


def full_of(config: Config) -> Config:
    """The full-history run over the same number of events.

    Keys that only a compressed layout reads have one value, so that runs are shared.
    """
    return with_values(config, layout__mode="full", layout__tokens=1, **NO_TOKENS)


def recent_of(config: Config) -> Config:
    """The run that sees the recent window only, with as many positions in a training step."""
    layout, train = config.layout, config.train
    return with_values(
        config,
        layout__mode="recent",
        layout__tokens=1,
        layout__max_segments=1,
        **NO_TOKENS,
        train__batch_size=train.batch_size * (layout.history // layout.recent),
        train__length_buckets=1,
    )


def _plots(x: str, label: str, title: str, log: bool = True) -> list[Line]:
    return [Line(title, x, QUALITY, label, f"Recall@{K}", log=log)]


def length(lab: Lab) -> Experiment:
    """Quality and cost against history length, compressed and full."""
    recent = recent_of(lab.base)
    facts: Values = {"series": "recent window alone", "segments": 0}
    cells = [_cell(lab, "recent window", recent, facts, full_of(lab.base))]
    for count in lab.config.experiments.lengths:
        config = with_values(lab.base, layout__max_segments=count)
        full = full_of(config)
        events = config.layout.history
        facts = {"series": "compressed", "segments": count}
        cells.append(_cell(lab, f"compressed {events}", config, facts, full, recent))
        cells.append(_cell(lab, f"full {events}", full, facts | {"series": "full"}, full))
    return Experiment(
        "length",
        "Quality against history length",
        "Does a longer history help, and does compression keep what it brings?",
        "One run per length and seed, compressed and full, with the same settings and steps; "
        "segments are as long everywhere, a longer history has more of them.",
        "The two lines lie together where compression loses nothing; both rise while older "
        "events still tell something.",
        cells,
        [
            *_plots("history", "history, events", "Quality against history length"),
            Line(
                "Work of a request",
                x="history",
                y="mflop_request",
                x_label="history, events",
                y_label="MFLOP per request",
                log=True,
                zero=True,
            ),
        ],
    )


def tokens(lab: Lab) -> Experiment:
    """Quality against the number of tokens per segment."""
    full, recent = full_of(lab.base), recent_of(lab.base)
    cells = [
        _cell(
            lab,
            f"k={k}",
            with_values(lab.base, layout__tokens=k),
            {"series": "compressed", "tokens": k},
            full,
            recent,
        )
        for k in lab.config.experiments.tokens
    ]
    return Experiment(
        "tokens",
        "Tokens per segment",
        "How many tokens does a segment need?",
        "One run per number of tokens and seed; segments and steps are the same.",
        "Where the line is flat more tokens buy nothing; each one makes the state longer. The "
        "ratio is to the full history of the same events. `closed` is the share of what full "
        "history adds over a model trained on the recent window alone.",
        cells,
        [
            Line(
                "Tokens per segment",
                x="tokens",
                y="recall_of_full",
                x_label="tokens per segment",
                y_label=f"Recall@{K} / full history",
                log=True,
            ),
            Line(
                "Share of the gap closed",
                x="state_bytes",
                y=f"ndcg@{K}_closed",
                x_label="bytes of a state",
                y_label=f"gap closed, NDCG@{K}",
                log=True,
            ),
        ],
    )


def segments(lab: Lab) -> Experiment:
    """Quality against the number of segments at equal history."""
    base = lab.base
    cells = []
    for count in lab.config.experiments.segments:
        config = equal_history(base, count, base.layout.tokens)
        facts = {
            "series": "compressed",
            "segments": count,
            "segment_size": config.layout.segment_size,
        }
        cells.append(_cell(lab, f"{count} segments", config, facts, full_of(base)))
    return Experiment(
        "segments",
        "Number of segments at equal history",
        "Is it better to compress in many small pieces or in a few large ones?",
        "The history of the base layout is cut into as many segments; each has the same number "
        "of tokens. The recent window is as long as a segment, so many segments also mean fewer "
        "raw events at a request, and a cheaper one.",
        "Left: few, long segments and a long recent window; right: the opposite. Compare quality "
        "with the work of a request in the table.",
        cells,
        [
            Line(
                "Segments at equal history",
                x="segments",
                y="recall_of_full",
                x_label="segments",
                y_label=f"Recall@{K} / full history",
                log=True,
            )
        ],
    )


def equal_history(base: Config, count: int, tokens: int) -> Config:
    """`base` with another number of segments over (nearly) the same number of events."""
    if count == base.layout.max_segments:
        return with_values(base, layout__tokens=tokens)
    size = max(1, round((base.layout.history - base.layout.recent_min + 1) / (count + 1)))
    return with_values(
        base, layout__max_segments=count, layout__segment_size=size, layout__tokens=tokens
    )


def placement(lab: Lab) -> Experiment:
    """Quality by where the tokens are: at the end, per segment, interleaved."""
    base = lab.base
    total = base.layout.max_segments * base.layout.tokens
    full = full_of(base)
    cells = []
    for name, count in (
        ("at the end", 1),
        ("per segment", base.layout.max_segments),
        ("interleaved", total),
    ):
        config = equal_history(base, count, total // count)
        facts = {
            "series": "compressed",
            "placement": name,
            "segments": count,
            "tokens": total // count,
            "segment_size": config.layout.segment_size,
        }
        cells.append(_cell(lab, name, config, facts, full))
    return Experiment(
        "placement",
        "Placement of the tokens",
        "Where should the tokens stand: all behind the history, behind segments, between events?",
        f"{total} tokens in all, over as many events: in one block, behind "
        f"{base.layout.max_segments} segments, or one by one between short runs of events. The "
        "recent window is as long as a segment.",
        "Bars are quality relative to the full history; the table gives what a request costs.",
        cells,
        [
            Line(
                "Placement of the tokens",
                x="placement",
                y="recall_of_full",
                x_label="tokens stand",
                y_label=f"Recall@{K} / full history",
                kind="bar",
            )
        ],
    )


def longer(lab: Lab) -> Experiment:
    """Quality of a run that is served with more segments than it was trained with."""
    base = lab.base
    trained = base.layout.max_segments
    cells = []
    for count in served_counts(trained, lab.config.experiments.longer):
        config = with_values(base, layout__max_segments=count)
        cells.append(_served(lab, count, config.layout.history))
        if count in (trained, *lab.config.experiments.lengths):
            name = f"trained {count}"
            facts = {"series": "trained at that length", "segments": count}
            cells.append(_cell(lab, name, config, facts))
    return Experiment(
        "longer",
        "Longer histories than in training",
        f"What happens to a model trained with {trained} segments when it is served with more?",
        "The same run with fewer and more complete segments laid out before the recent window; a "
        f"position sees the tokens of the {trained} segments before it, so older events arrive "
        "through the tokens between. Beside it runs that were trained with so many segments "
        "(those of `length`).",
        "A line that does not fall behind the trained length says that a state may go on being "
        "extended for ever.",
        cells,
        _plots("segments", "segments served", "Longer histories than in training"),
    )


def _served(lab: Lab, count: int, events: int) -> Cell:
    """The base run served with `count` segments."""
    name = f"served {count}"

    def make() -> Values:
        facts = {"series": "served longer than trained", "segments": count, "history": events}
        return {"name": name, **facts, **measured(lab, lab.base, name)}

    return Cell(name, make)


def served_counts(trained: int, factors: Sequence[float]) -> list[int]:
    """Numbers of segments to serve.

    >>> served_counts(4, (0.1, 0.5, 2))
    [1, 2, 8]
    """
    return sorted({max(1, round(trained * factor)) for factor in factors})
