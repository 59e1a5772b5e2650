"""What a request and a training step of trained models take on this machine: experiment `cost`.

Modes are timed in turn, on histories of the data; `benchmark` measures shapes instead.
"""

import functools
from collections.abc import Callable, Iterable, Mapping

import jax
import numpy as np

from jaxrec.benchmark import grid
from jaxrec.benchmark.workload import last_query, stacked
from jaxrec.config import Config
from jaxrec.experiments.gap import base_of, modes_of
from jaxrec.experiments.quality import price
from jaxrec.experiments.result_table import Cell, Experiment, Line, Values
from jaxrec.experiments.runs import Lab, with_values
from jaxrec.experiments.stored import histories_of
from jaxrec.model import states
from jaxrec.runtime import mesh as mesh_lib
from jaxrec.serving import Recommender, state_rows
from jaxrec.serving.state_rows import Events
from jaxrec.session import Session
from jaxrec.state_store.encodings import encode_state
from jaxrec.training import step as step_lib

BATCHES = (1, 16)  # users of a request
SECONDS, ROUNDS = 6.0, 100  # of the requests of a batch size, all modes together
STEPS = 5  # training steps that are timed, of each mode
TRAINING = "training step"


def title(batch: int) -> str:
    """The name of a part of the table.

    >>> title(1), title(16)
    ('request of 1 user', 'request of 16 users')
    """
    return f"request of {batch} user{'s' if batch > 1 else ''}"


def runs_of(lab: Lab) -> dict[str, Config]:
    """The runs that are timed, of the first seed, by layout.mode."""
    runs = lab.given or modes_of(base_of(lab))
    return {mode: with_values(config, seed=lab.seeds[0]) for mode, config in runs.items()}


def training_seconds(lab: Lab, modes: Iterable[str]) -> dict[str, list[float]]:
    """Seconds of training steps on the longest rows, by layout.mode, timed in turn.

    The runs need not be trained; compiled programs are kept and used by the training.
    """
    runs = runs_of(lab)
    return _in_turn({m: _training_step(lab.untrained(runs[m])) for m in modes}, 0.0, STEPS)


def _training_step(session: Session) -> Callable[[], object]:
    """A function that takes one more step of `train.py`, on one and the same batch."""
    mesh = mesh_lib.make_mesh(session.config.mesh)
    task = session.task(fresh=True)
    session.config.train.length_buckets = 1  # no batch has longer rows
    with jax.set_mesh(mesh):
        assembled = step_lib.assemble(session.config, task, mesh)
        batch = next(session.train_batches(0))
        placed = mesh_lib.put_batch(mesh, batch) if task.texts is None else task.texts.put(0, batch)
        state = [jax.jit(assembled.new)()]

    def step() -> object:
        with jax.set_mesh(mesh):
            state[0], metrics = assembled.step(state[0], placed, task.sampling)
        return metrics

    return step


def request_seconds(lab: Lab, batch: int) -> dict[str, list[float]]:
    """Seconds of a request of `batch` users with long histories, by layout.mode, in turn.

    From NumPy arrays on the host to query vectors; ranking the catalog, the same for all, is left
    out. A compressed request starts from rows as the store holds them.
    """
    calls = {m: _request(lab, config, batch) for m, config in runs_of(lab).items()}
    return _in_turn(calls, SECONDS, ROUNDS)


def _request(lab: Lab, config: Config, batch: int) -> Callable[[], object]:
    session = lab.session(config)
    histories = _longest(session, batch, session.layout.num_items)
    if config.layout.mode != "compressed":
        items, times = stacked(histories)
        trained = session.trained_model()
        query = jax.jit(functools.partial(last_query, trained.model, batch))
        return functools.partial(query, trained.params, items, times)
    rec = Recommender.load(lab.place(config), devices=jax.local_devices()[:1])
    items, times = stacked(histories)
    counts = np.full(batch, items.shape[1], np.int32)
    state = jax.jit(functools.partial(states.compress, rec.model))(rec.params, items, times, counts)
    columns = encode_state(state_rows.to_host(state), "float32")
    return lambda: rec.queries(columns, "float32")[0]


def _longest(session: Session, batch: int, events: int) -> list[Events]:
    """The newest `events` events of the users who have most.

    Where a history is shorter its items are repeated: what a program takes depends on its shape.
    """
    users = np.argsort(-session.prepared.lengths, kind="stable")[:batch]
    users = np.resize(users, batch)
    return [
        Events(*(np.resize(column[-events:], events) for column in history))
        for history in histories_of(session, users)
    ]


def _in_turn(
    calls: Mapping[str, Callable[[], object]], seconds: float, rounds: int
) -> dict[str, list[float]]:
    """`grid.in_turn`, with the first error raised."""
    samples, errors = grid.in_turn(calls, seconds, rounds)
    for error in errors.values():
        raise error
    return samples


def compared(samples: Mapping[str, list[float]], mode: str) -> Values:
    """Median milliseconds of a mode, and its time as a share of full history's, with quartiles."""
    own, full = np.asarray(samples[mode]), np.asarray(samples["full"])
    rounds = min(len(own), len(full))
    low, middle, high = np.percentile(own[:rounds] / full[:rounds], (25, 50, 75))
    first, median, third = 1e3 * np.percentile(own, (25, 50, 75))
    return {
        "ms": median,
        "ms_low": first,
        "ms_high": third,
        "ms_of_full": middle,
        "ms_of_full_low": low,
        "ms_of_full_high": high,
        "rounds": rounds,
    }


def cost(lab: Lab) -> Experiment:
    """Time of a request and of a training step of the trained runs, beside full history."""

    @functools.cache
    def samples(part: int | None) -> dict[str, list[float]]:
        modes = runs_of(lab)
        return training_seconds(lab, modes) if part is None else request_seconds(lab, part)

    def cell(part: int | None, mode: str) -> Cell:
        name = TRAINING if part is None else title(part)

        def make() -> Values:
            values: Values = {"name": mode, "part": name, "series": name}
            runs = runs_of(lab)
            if part is not None:
                priced = price(runs[mode], mode, runs["compressed"])
                values |= {key: priced[key] for key in ("flops_of_full", "state_bytes")}
            return values | compared(samples(part), mode)

        return Cell(f"{name}, {mode}", make)

    return Experiment(
        "cost",
        "What requests and training take on this machine",
        "How much time do compressed tokens save here?",
        "The trained models of `gap` on the longest histories of the data, modes in turn. A "
        "request is timed from NumPy arrays on the host to query vectors; reading the store and "
        "ranking the catalog are left out. A training step is that of `train.py` on rows of the "
        "whole layout.",
        "`ms` is the median with quartiles in brackets, `ms of full` the median, over rounds, "
        "of the ratio to full history in the same round. Where time saves less than FLOPs, a "
        "request has costs of its own.",
        [
            cell(part, mode)
            for part in (*BATCHES, None)
            for mode in ("recent", "compressed", "full")
        ],
        brackets="quartiles",
        plots=[
            Line(
                "Time by what a model is shown",
                x="name",
                y="ms",
                x_label="",
                y_label="milliseconds",
                kind="bar",
                zero=True,
            )
        ],
    )
