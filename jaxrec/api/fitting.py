"""`fit` and `load`: a run from Python, by the way that `train.py` goes."""

import os
import pathlib
import signal
from collections.abc import Collection

import jax

from jaxrec.api import event_file, frames, settings
from jaxrec.api.frames import LIBRARIES, Frame, Library
from jaxrec.api.model import FittedModel
from jaxrec.config import Config, asks_for_advice, validate
from jaxrec.data import advised
from jaxrec.errors import ConfigError, DataError, WorkdirError
from jaxrec.evaluation import evaluator
from jaxrec.runtime import compile_cache, loggers
from jaxrec.runtime import mesh as mesh_lib
from jaxrec.runtime import workdir as workdir_lib
from jaxrec.runtime.preemption import Preempted, Preemption
from jaxrec.runtime.progress import say
from jaxrec.session import Session
from jaxrec.training.step_cost import cost_of_a_step

EVENTS = "events"  # what a frame is called in messages


def fit(
    events: Frame | str | os.PathLike[str],
    *,
    workdir: str | os.PathLike[str],
    user: str | None = None,
    item: str | None = None,
    time: str | None = None,
    config: Config | str | None = None,
    **overrides: object,
) -> FittedModel:
    """Trains a recommender on events and returns its best checkpoint.

    The same call continues a run that was stopped, and returns one that is finished. It is the run
    that `train.py` makes of the same events and settings, in the same folder.

    events: a frame of pandas, polars or pyarrow (or of another library that narwhals knows), or a
        path or glob of parquet, CSV or JSON-lines files. Only the named columns are read; an index
        is no column. A frame is stored once, in `<workdir>/frames`.
    workdir: folder of the run.
    user, item, time: names of the columns (default: those of `config`: user_id, item_id,
        timestamp). Ids are integers or text. Times are seconds since 1970 (`data.time_unit`),
        datetimes or dates, with a zone or without (`data.time_zone`), or ISO 8601 text.
    config: a configuration or a recipe (`FILE.py[:ARGUMENT]`); default: what
        suits the data (`jaxrec.data.advice`).
    overrides: other values by dotted key, such as `**{"layout.tokens": 8}`.

    Ctrl-C ends the step, saves and raises KeyboardInterrupt; a second one stops at once. SIGTERM
    saves too. Raises ConfigError, DataError, WorkdirError, LoggerError: one line that names what to
    change.
    """
    frames.require_extra()
    advice = overrides if config is None or _asks(config) else None
    if jax.process_count() > 1:
        raise ConfigError("fit: runs in one process; start train.py on every host instead")
    folder = pathlib.Path(workdir)
    if folder.exists() and not folder.is_dir():
        raise WorkdirError(f"workdir {folder} is a file: name a folder")
    resolved = settings.resolve(config, {"user": user, "item": item, "time": time}, overrides)
    if resolved.train.dry_run:
        raise ConfigError("train.dry_run: only train.py prints what a step needs; fit trains")
    if frames.is_path(events):
        resolved.data.path = os.path.abspath(events)
        return FittedModel(_train(validate(resolved), folder, advice))
    table = event_file.table(events, resolved.data, EVENTS)
    path = event_file.place(table.frame, folder)
    resolved.data.path = str(path)
    validate(resolved)
    written = event_file.write(table.frame, path)
    try:
        session = _train(resolved, folder, advice)
    except DataError as error:
        raise DataError(str(error).replace(str(path), EVENTS)) from error
    finally:
        if written and not _claimed(folder, path):  # the run of this folder is another one
            path.unlink(missing_ok=True)
    return FittedModel(session, table.library)


def load(workdir: str | os.PathLike[str], *, library: Library = "polars") -> FittedModel:
    """The model of a run, made by `fit` or by `train.py`.

    library: of the frames that come back: pandas, polars or pyarrow. Raises WorkdirError,
    CheckpointError or DataError, naming the folder and what to do.
    """
    frames.require_extra()
    if library not in LIBRARIES:
        raise ConfigError(f"library={library!r}: allowed are {', '.join(LIBRARIES)}")
    folder = pathlib.Path(workdir)
    if not folder.is_dir():
        raise WorkdirError(f"{folder}: no such run; train it first, or name its folder")
    config = workdir_lib.load_config(folder)
    config.data.path = event_file.moved(config.data, folder)
    session = Session(config, folder)
    workdir_lib.check_data(folder, session.digests)
    model = FittedModel(session, library)
    _ = model.ranker  # a run without a checkpoint is refused here
    return model


def _asks(config: Config | str) -> bool:
    return isinstance(config, str) and asks_for_advice(config)


def _train(config: Config, folder: pathlib.Path, given: Collection[str] | None) -> Session:
    """The session of a finished run. Raises KeyboardInterrupt after Ctrl-C, when it has saved.

    given: keys that stay, where the data chooses the others (`jaxrec.data.advised`); None: all do.
    """
    compile_cache.use(config.train.compilation_cache)
    mesh = mesh_lib.make_mesh(config.mesh)
    mesh_lib.check_batch_size(mesh, config.train.batch_size, "train.batch_size")
    evaluator.chosen(config)
    loggers.check(config.train.loggers)
    folder.mkdir(parents=True, exist_ok=True)
    with Preemption(ctrl_c=True) as preemption:
        try:
            with preemption.interrupting():
                if given is not None:
                    advised.fill(config, given, folder)
                session = Session(config, folder, mesh, preemption.poll)
            session.check_targets()
            session.fit(
                preemption=preemption, step_cost=cost_of_a_step(config, session.model, mesh)
            )
        except Preempted:
            pass
    if preemption.requested:
        say(f"stopped; the same call continues the run in {folder}")
        if preemption.received == signal.SIGTERM:
            signal.raise_signal(signal.SIGTERM)  # as the caller handles it; it ends most programs
        raise KeyboardInterrupt
    return session


def _claimed(folder: pathlib.Path, path: pathlib.Path) -> bool:
    """Whether the run of the folder is one on this file of events."""
    if not (folder / workdir_lib.CONFIG).is_file():
        return False
    stored = pathlib.Path(workdir_lib.load_config(folder).data.path)
    return stored.name == path.name and stored.parent.name == path.parent.name
