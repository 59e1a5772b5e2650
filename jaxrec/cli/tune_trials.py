"""The trials of a search: ask Optuna for settings, train, tell it the best validation."""

import contextlib
import copy
import pathlib
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import jax
import optuna
from optuna.samplers import RandomSampler, TPESampler
from optuna.trial import FrozenTrial, Trial, TrialState

from jaxrec.cli import search_space, tune_report
from jaxrec.cli.search_space import Dimension
from jaxrec.cli.tune_report import Row
from jaxrec.config import Config, digest, validate
from jaxrec.data.advice import put
from jaxrec.errors import ConfigError, NonFiniteError
from jaxrec.runtime import mesh as mesh_lib
from jaxrec.runtime import workdir
from jaxrec.runtime.metrics_writer import VALIDATION, read_metrics
from jaxrec.runtime.preemption import Preempted, Preemption
from jaxrec.runtime.progress import clock, say
from jaxrec.session import Session
from jaxrec.training.hooks import Hook

STORAGE, NAME, RECORD = "study.db", "search", "jaxrec"
STARTUP = 4  # trials before any is stopped early
# settings in a row that are known already or do not fit, before random ones are asked for, and
# before the search ends
REPEATED, EXHAUSTED = 5, 200


class Outcome(NamedTuple):
    """How a trial ended: its state for Optuna, the best validation, where, and what to say."""

    state: TrialState
    kind: str
    value: float | None = None
    step: int | None = None
    note: str = ""


class Pruning(Hook):
    """Reports validations to Optuna and ends a trial that is below the median of the others.

    known: validations of an earlier start of this trial, step -> value.
    """

    def __init__(self, trial: Trial, config: Config, known: Mapping[int, float]):
        self._trial, self._metric = trial, config.train.metric
        self._last, self._reported = config.train.steps, set(known)
        for step, value in known.items():
            trial.report(value, step)

    def after_validation(self, step: int, values: Mapping[str, float]) -> None:
        """Raises optuna.TrialPruned; not at the end, where nothing is left to save."""
        if step not in self._reported:
            self._reported.add(step)
            self._trial.report(float(values[self._metric]), step)
        if step < self._last and self._trial.should_prune():
            raise optuna.TrialPruned(f"below the median at step {step}")


def run(
    config: Config,
    folder: pathlib.Path,
    space: Sequence[Dimension],
    trials: int,
    preemption: Preemption,
) -> None:
    """Trains until `trials` are done, writes and prints the results.

    Raises ConfigError where no settings fit together or no user has a validation target;
    Preempted after SIGTERM.
    """
    with preemption.interrupting():
        Session(config, folder, mesh_lib.make_mesh(config.mesh)).check_targets()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    with _study(folder, config) as study:
        for killed in study.get_trials(states=(TrialState.RUNNING,)):
            # the folder is locked, so nobody trains it
            say(f"trial {killed.number} was interrupted and is continued")
            study.tell(killed.number, state=TrialState.FAIL)
            study.enqueue_trial(killed.params)
        begun, start = len(tune_report.trained(_rows(study))), time.monotonic()
        for trial, values in _asked(study, config, space, trials):
            outcome = _train(config, folder, values, trial, preemption)
            _tell(study, trial, values, outcome)
            rows = _rows(study)
            _remove_checkpoints(folder, rows)
            tune_report.write(config, folder, rows)
            done = len(tune_report.trained(rows))
            spent = (time.monotonic() - start) / max(done - begun, 1)
            left = clock(spent * (trials - done))
            say(f"trial {trial.number}: {_said(config, outcome)}; some {left} left")
        rows = _rows(study)
        if not tune_report.trained(rows):
            refusal = next((row.note for row in rows), "none was asked for")
            raise ConfigError(f"no settings of the search fit together: {refusal}")
        tune_report.write(config, folder, rows)
        tune_report.plot(config, folder, rows)
        print(tune_report.summary(config, folder, rows))


def _asked(
    study: optuna.Study, config: Config, space: Sequence[Dimension], trials: int
) -> Iterator[tuple[Trial, dict[str, object]]]:
    """Trials with settings that are new, until `trials` were trained or nothing new is found."""
    idle, most = 0, search_space.combinations(space)
    while idle < EXHAUSTED:
        known = _known(study)
        done = len(tune_report.trained(_rows(study)))
        if done >= trials:
            return
        if len(known) >= most:
            say(f"all {most:.0f} settings were tried")
            return
        # another seed at each draw: a search that goes on does not draw the same again
        seed = config.seed + len(study.get_trials(deepcopy=False))
        study.sampler = RandomSampler(seed) if idle >= REPEATED else TPESampler(seed=seed)
        trial = study.ask()
        values = search_space.suggest(space, trial)
        first = known.get(name(values))
        if first is None:
            shown = ", ".join(f"{key}={value}" for key, value in values.items())
            say(f"trial {trial.number}, {done + 1} of {trials}: {shown}")
            yield trial, values
            invalid = _known(study)[name(values)].user_attrs[RECORD]["kind"] == "invalid"
            idle = idle + 1 if invalid else 0
        else:  # Optuna learns again what these settings gave
            complete = first.state == TrialState.COMPLETE
            study.tell(trial, first.value if complete else None, None if complete else first.state)
            idle += 1
    say(f"the last {idle} settings were known or do not fit together: the search ends")


@contextlib.contextmanager
def _study(folder: pathlib.Path, config: Config) -> Iterator[optuna.Study]:
    storage = optuna.storages.RDBStorage(f"sqlite:///{(folder / STORAGE).absolute()}")
    try:
        yield optuna.create_study(
            storage=storage,
            study_name=NAME,
            direction="maximize",
            load_if_exists=True,
            sampler=TPESampler(seed=config.seed),
            pruner=optuna.pruners.MedianPruner(n_startup_trials=STARTUP),
        )
    finally:
        storage.remove_session()
        storage.engine.dispose()


def _train(
    base: Config,
    folder: pathlib.Path,
    values: Mapping[str, object],
    trial: Trial,
    preemption: Preemption,
) -> Outcome:
    """Trains settings in a folder of their own, from its last checkpoint. Raises Preempted."""
    config = settings(base, values)
    run_folder = folder / "trials" / name(values)
    metric = f"{VALIDATION}{config.train.metric}"
    lines = read_metrics(run_folder / workdir.METRICS)
    known = {row["step"]: row[metric] for row in lines if row.get(metric) is not None}
    try:
        validate(config)
        mesh = mesh_lib.make_mesh(config.mesh)
        with preemption.interrupting():
            session = Session(config, run_folder, mesh, preemption.poll)
        result = session.fit(preemption=preemption, hooks=[Pruning(trial, config, known)])
    except optuna.TrialPruned as pruned:
        lines = read_metrics(run_folder / workdir.METRICS)
        best = max((row for row in lines if row.get(metric) is not None), key=lambda r: r[metric])
        return Outcome(TrialState.PRUNED, "stopped", best[metric], best["step"], str(pruned))
    except ConfigError as error:
        return Outcome(TrialState.FAIL, "invalid", note=str(error))
    except NonFiniteError as error:
        return Outcome(TrialState.FAIL, "diverged", note=str(error))
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return Outcome(TrialState.FAIL, "out of memory", note=str(error).partition("\n")[0])
    if result.stopped == "preempted":
        raise Preempted
    if result.best is None:
        return Outcome(TrialState.FAIL, "diverged", note=f"{config.train.metric} is no number")
    return Outcome(TrialState.COMPLETE, "finished", result.best, result.best_step)


def settings(base: Config, values: Mapping[str, object]) -> Config:
    """The configuration of a trial, not validated."""
    config = copy.deepcopy(base)
    for key, value in values.items():
        put(config, key, value)
    return config


def name(values: Mapping[str, object]) -> str:
    """The folder of settings below `trials/`."""
    return digest({key: repr(value) for key, value in values.items()})


def _tell(
    study: optuna.Study, trial: Trial, values: Mapping[str, object], outcome: Outcome
) -> None:
    record = {
        "name": name(values),
        "settings": {key: repr(value) for key, value in values.items()},
        **{field: getattr(outcome, field) for field in ("kind", "value", "step", "note")},
    }
    trial.set_user_attr(RECORD, record)
    complete = outcome.state == TrialState.COMPLETE
    study.tell(trial, outcome.value if complete else None, None if complete else outcome.state)


def _known(study: optuna.Study) -> dict[str, FrozenTrial]:
    """Settings -> the trial that ended with them, whether trained or invalid."""
    found = study.get_trials(deepcopy=False)
    return {t.user_attrs[RECORD]["name"]: t for t in found if RECORD in t.user_attrs}


def _rows(study: optuna.Study) -> list[Row]:
    """The trials that ended, those of settings that do not fit together among them."""
    rows = []
    for trial in _known(study).values():
        record = trial.user_attrs[RECORD]
        rows.append(
            Row(
                number=trial.number,
                kind=record["kind"],
                value=record["value"],
                step=record["step"],
                seconds=trial.duration.total_seconds() if trial.duration else 0.0,
                folder=record["name"],
                settings=record["settings"],
                note=record["note"],
            )
        )
    return rows


def _said(config: Config, outcome: Outcome) -> str:
    if outcome.value is None:
        return f"{outcome.kind}, {outcome.note}"
    found = f"{config.train.metric} {outcome.value:.4f} at step {outcome.step}"
    return f"{outcome.kind}, {found}" + (f" ({outcome.note})" if outcome.note else "")


def _remove_checkpoints(folder: pathlib.Path, rows: Sequence[Row]) -> None:
    """Of all trials that ended, but the best one."""
    best = tune_report.best(rows)
    for row in rows:
        if best is None or row.folder != best.folder:
            checkpoints = folder / "trials" / row.folder / workdir.CHECKPOINTS
            shutil.rmtree(checkpoints, ignore_errors=True)
