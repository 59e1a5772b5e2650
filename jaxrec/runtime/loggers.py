"""Where metrics go besides metrics.jsonl (`train.loggers`): TensorBoard, Weights & Biases, MLflow.

metrics.jsonl is the record of a run. A logger that fails while a run trains is left out from there
on, with one line that says so. W&B and MLflow are configured by their own environment variables.
"""

import importlib.util
import json
import os
import pathlib
import re
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from jaxrec.config import Config
from jaxrec.errors import LoggerError, WorkdirError
from jaxrec.runtime import workdir
from jaxrec.runtime.metrics_writer import MetricWriter
from jaxrec.runtime.program import EXTRAS
from jaxrec.untrusted import json_objects

IDS = "loggers.json"  # of a run's folder: logger -> id of the run there
EVENTS = "events"  # of a run's folder: TensorBoard's files
NAME = "jaxrec"  # of the project and the experiment, unless the environment names others
PARAMS = 100  # that MLflow takes at once
VALUE = 500  # characters of a parameter that every MLflow takes

Say = Callable[[str], None]


class Start(NamedTuple):
    """A start of a training.

    folder: the run's. step: updates done before. known: the run's id at the logger; "" at first.
    """

    folder: pathlib.Path
    config: Config
    step: int
    known: str

    @property
    def name(self) -> str:
        """What the run is called."""
        return self.folder.resolve().name


class Logger(NamedTuple):
    """package: that it needs. start: what makes its writer, whose `id` is kept if it has one."""

    package: str
    start: Callable[[Start], MetricWriter]


class TensorBoard:
    """TensorBoard events in `<folder>/events`; older ones are hidden behind the step."""

    def __init__(self, start: Start) -> None:
        from tensorboardX import SummaryWriter

        self._writer = SummaryWriter(str(start.folder / EVENTS), purge_step=start.step + 1)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """A scalar per value."""
        for key, value in values.items():
            self._writer.add_scalar(key, value, step)

    def close(self, finished: bool) -> None:
        """Writes what is left."""
        self._writer.close()


class WandB:
    """A run at Weights & Biases; steps that it has already are not sent again."""

    def __init__(self, start: Start) -> None:
        import wandb

        # the user's own run, in a notebook, stays what it is
        self._run = wandb.init(
            id=start.known or None,
            resume="allow",
            reinit="create_new",
            name=os.environ.get("WANDB_NAME", start.name),
            project=os.environ.get("WANDB_PROJECT", NAME),
            dir=os.environ.get("WANDB_DIR", str(start.folder)),
            config=workdir.flatten(start.config),
            allow_val_change=True,
        )
        self.id = str(self._run.id)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """The values as one row of the run's history."""
        if step >= self._run.starting_step:
            self._run.log(dict(values), step=step)

    def close(self, finished: bool) -> None:
        """Sends what is left; a run that is not finished is marked as failed."""
        self._run.finish(exit_code=0 if finished else 1)


class MLflow:
    """A run of an MLflow tracking store; values that it has already are not sent again."""

    def __init__(self, start: Start) -> None:
        from mlflow import MlflowClient

        self._client = MlflowClient()  # of MLFLOW_TRACKING_URI
        self.id = start.known or self._create(start)
        self._client.update_run(self.id, status="RUNNING")
        metrics = self._client.get_run(self.id).data.metrics
        self._sent = {
            name: max(value.step for value in self._client.get_metric_history(self.id, name))
            for name in metrics
        }

    def _create(self, start: Start) -> str:
        from mlflow.entities import Param

        experiment = os.environ.get("MLFLOW_EXPERIMENT_ID") or self._experiment()
        name = os.environ.get("MLFLOW_RUN_NAME", start.name)
        run = str(self._client.create_run(experiment, run_name=name).info.run_id)
        keys = workdir.flatten(start.config).items()
        params = [Param(key, str(value)[:VALUE]) for key, value in keys]
        for first in range(0, len(params), PARAMS):
            self._client.log_batch(run, params=params[first : first + PARAMS])
        return run

    def _experiment(self) -> str:
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", NAME)
        known = self._client.get_experiment_by_name(name)
        return str(known.experiment_id if known else self._client.create_experiment(name))

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """A metric per value; `@` is no letter of a name there: ndcg@10 is ndcg_at_10."""
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        named = {key.replace("@", "_at_"): value for key, value in values.items()}
        metrics = [
            Metric(name, value, now, step)
            for name, value in named.items()
            if step > self._sent.get(name, -1)
        ]
        self._client.log_batch(self.id, metrics=metrics)

    def close(self, finished: bool) -> None:
        """Ends the run; one that is not finished is marked as killed."""
        self._client.set_terminated(self.id, "FINISHED" if finished else "KILLED")


LOGGERS = {
    "tensorboard": Logger("tensorboardX", TensorBoard),
    "wandb": Logger("wandb", WandB),
    "mlflow": Logger("mlflow", MLflow),
}


class MetricWriters:
    """A writer whose failures are errors, and others that are left out after their first failure.

    record: the first. others: logger -> its writer. say: gets a line about a failure.
    """

    def __init__(self, record: MetricWriter, others: Mapping[str, MetricWriter], say: Say) -> None:
        self._record, self._others, self._say = record, dict(others), say

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Gives the values to all writers. Raises what the record's raises."""
        self._record.write(step, values)
        self._each(lambda writer: writer.write(step, values))

    def close(self, finished: bool) -> None:
        """Closes all of them."""
        self._record.close(finished)
        self._each(lambda writer: writer.close(finished))

    def _each(self, call: Callable[[MetricWriter], None]) -> None:
        for name, writer in list(self._others.items()):
            try:
                call(writer)
            except Exception as error:  # of a network, a server, a disk: not worth a training
                del self._others[name]
                self._say(
                    f"{name}: {_one_line(error)}; it gets no more metrics, the run continues and "
                    f"{workdir.METRICS} has all of them"
                )


def chosen(loggers: str) -> list[str]:
    """The loggers that `train.loggers` names, each once; auto stands for those that are there."""
    names = [name for name in loggers.split(",") if name]
    if "auto" in names and _installed(LOGGERS["tensorboard"].package):
        names.append("tensorboard")
    return [name for name in LOGGERS if name in names]


def check(loggers: str) -> None:
    """Raises LoggerError for a logger whose package is not installed. loggers: `train.loggers`."""
    for name in chosen(loggers):
        package = LOGGERS[name].package
        if not _installed(package):
            raise LoggerError(
                f"train.loggers={loggers}: {package} is not installed: "
                f"pip install 'jaxrec[{EXTRAS[package]}]'"
            )


def open_writer(
    config: Config, folder: pathlib.Path, record: MetricWriter, *, start: int, say: Say
) -> MetricWriter:
    """What writes to `record` and to the loggers of `train.loggers`.

    The ids of the run at its loggers are kept in the folder, and a later start continues those
    runs. start: updates done before. say: gets lines about failures. Raises LoggerError for a
    logger that cannot start; in a run that is continued it is left out and said.
    """
    writers: dict[str, MetricWriter] = {}
    try:
        check(config.train.loggers)
        ids = _read_ids(folder / IDS)
        for name in chosen(config.train.loggers):
            given = Start(folder, config, start, ids.get(name, ""))
            try:
                writers[name] = writer = LOGGERS[name].start(given)
            except Exception as error:  # whatever a library raises: no account, no network
                reason = f"{name} cannot be started: {_one_line(error)}"
                if not start:
                    raise LoggerError(
                        f"train.loggers={config.train.loggers}: {reason}. Mend that, or leave it "
                        "out"
                    ) from error
                say(f"{reason}; the run continues, {workdir.METRICS} has its metrics")
                continue
            found = getattr(writer, "id", "")
            if found and found != given.known:
                ids[name] = found
                workdir.write_text(folder / IDS, json.dumps(ids, indent=2) + "\n")
    except BaseException:
        MetricWriters(record, writers, say).close(finished=False)
        raise
    return MetricWriters(record, writers, say)


def _installed(package: str) -> bool:
    spec = importlib.util.find_spec(package)
    # a folder of that name, such as W&B's own `wandb`, can be imported too and has no file
    return spec is not None and spec.origin is not None


def _read_ids(file: pathlib.Path) -> dict[str, str]:
    """Logger -> id. Raises WorkdirError for a damaged file."""
    if not file.exists():
        return {}

    def damaged(text: str) -> WorkdirError:
        return WorkdirError(f"{text}. Remove the file: the loggers then begin new runs")

    values: dict[str, Any] = json_objects.read(file, damaged)
    for name in values:
        json_objects.get(values, name, str, str(file), damaged)
    return values


def _one_line(error: Exception) -> str:
    """The message of a library without colours and line breaks, or else its kind."""
    text = " ".join(re.sub(r"\x1b\[[0-9;]*m", "", str(error)).split())
    return text[:300].rstrip(". ") or type(error).__name__
