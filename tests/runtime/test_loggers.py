"""TensorBoard, Weights & Biases and MLflow beside metrics.jsonl: real ones, without a network."""

import json
import math
import pathlib
import struct
import sys
import time

import pytest

from jaxrec.config import Config, training_fields, validate
from jaxrec.errors import ConfigError, LoggerError, WorkdirError
from jaxrec.runtime import loggers
from jaxrec.runtime.loggers import Logger, open_writer
from jaxrec.runtime.metrics_writer import JsonLines

BLOCK, HEADER, FULL, LAST = 1 << 15, 7, 1, 4  # of LevelDB's log format


def config_of(names):
    config = Config()
    config.train.loggers = names
    return config


def opened(folder, names, start=0, said=None):
    said = [] if said is None else said
    record = JsonLines(folder, start)
    return open_writer(config_of(names), folder, record, start=start, say=said.append)


def steps(folder):
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line)["step"] for line in lines]


def a_training(folder, names):
    """Stopped behind step 4, continued from a checkpoint at step 2, finished at step 6."""
    writer = opened(folder, names)
    for step in (2, 4):
        writer.write(step, {"train/loss": 1 / step, "bad": math.nan})
        writer.write(step, {"validation/ndcg@10": step / 10})
    writer.close(finished=False)
    said = []
    writer = opened(folder, names, start=2, said=said)
    for step in (4, 6):
        writer.write(step, {"train/loss": 1 / step})
        writer.write(step, {"validation/ndcg@10": step / 10})
    writer.close(finished=True)
    assert said == []
    assert steps(folder) == [2, 2, 4, 4, 6, 6]


# -- real ones -----------------------------------------------------------------------------------


def test_tensorboard(tmp_path):
    pytest.importorskip("tensorboardX")
    a_training(tmp_path, "tensorboard")
    for file in (tmp_path / "events").iterdir():
        assert b"train/loss" in file.read_bytes()
    assert not (tmp_path / loggers.IDS).exists()


def leveldb_records(log):
    """The records of W&B's file: a header of 7 bytes, then LevelDB's log format."""
    position, parts = 7, []
    while position < len(log):
        left = BLOCK - position % BLOCK
        if left < HEADER:
            position += left
            continue
        _, size, kind = struct.unpack_from("<IHB", log, position)
        position += HEADER + size
        parts.append(log[position - size : position])
        if kind in (FULL, LAST):
            yield b"".join(parts)
            parts = []


def wandb_records(file, seconds=60):
    """All records of a run, of which W&B's own process writes the last behind `finish`."""
    from wandb.proto.wandb_internal_pb2 import Record

    end = time.monotonic() + seconds
    while time.monotonic() < end:
        records = [Record.FromString(data) for data in leveldb_records(file.read_bytes())]
        if records and records[-1].HasField("exit"):
            return records
        time.sleep(0.1)
    raise TimeoutError(f"{file} has no end")


def test_wandb_offline(tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    for name in ("WANDB_PROJECT", "WANDB_RUN_ID", "WANDB_DIR", "WANDB_NAME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in (("MODE", "offline"), ("SILENT", "true"), ("CONSOLE", "off")):
        monkeypatch.setenv(f"WANDB_{name}", value)
    a_training(tmp_path, "wandb")

    files = sorted((tmp_path / "wandb").glob("offline-run-*/*.wandb"))
    runs = [wandb_records(file) for file in files]
    records = [record for of_run in runs for record in of_run]
    (run,) = {(r.run.run_id, r.run.project) for r in records if r.HasField("run")}
    assert run == (json.loads((tmp_path / loggers.IDS).read_text())["wandb"], "jaxrec")
    assert sorted(of_run[-1].exit.exit_code for of_run in runs) == [0, 1]
    history = [
        {item.nested_key[0]: item.value_json for item in record.history.item}
        for record in records
        if record.HasField("history")
    ]
    # without a server nobody knows what was sent before: `wandb sync` puts them together
    losses = [(int(row["_step"]), float(row["train/loss"])) for row in history]
    assert sorted(set(losses)) == [(2, 0.5), (4, 0.25), (6, 1 / 6)]
    assert all(float(row["validation/ndcg@10"]) == int(row["_step"]) / 10 for row in history)


# of MLflow's own models, with SQLAlchemy 2.1
@pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy:DeprecationWarning")
@pytest.mark.filterwarnings("ignore::ResourceWarning")  # its SQLite connections
def test_mlflow_in_a_local_database(tmp_path, monkeypatch):
    pytest.importorskip("mlflow")
    pytest.importorskip("alembic")
    from mlflow import MlflowClient

    for name in ("MLFLOW_EXPERIMENT_ID", "MLFLOW_EXPERIMENT_NAME", "MLFLOW_RUN_NAME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    folder = tmp_path / "mine"
    folder.mkdir()
    a_training(folder, "mlflow")

    client = MlflowClient()
    experiment = client.get_experiment_by_name("jaxrec")
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.run_id == json.loads((folder / loggers.IDS).read_text())["mlflow"]
    assert (run.info.run_name, run.info.status) == ("mine", "FINISHED")
    assert run.data.params["train.loggers"] == "mlflow"
    for key, at in (("train/loss", lambda n: 1 / n), ("validation/ndcg_at_10", lambda n: n / 10)):
        values = client.get_metric_history(run.info.run_id, key)
        assert [(value.step, value.value) for value in values] == [(n, at(n)) for n in (2, 4, 6)]


# -- failures ------------------------------------------------------------------------------------


class Stub:
    """A logger that does what it is told, once."""

    id = "abc"

    def __init__(self, start):
        self.start, self.steps, self.closed = start, [], None

    def write(self, step, values):
        self.steps.append(step)
        if step == 2:
            raise ConnectionError("no route\nto host")

    def close(self, finished):
        self.closed = finished


@pytest.fixture
def stub(monkeypatch):
    """The stubs that were made, in place of W&B."""
    made = []

    def start(given):
        made.append(Stub(given))
        return made[-1]

    monkeypatch.setitem(loggers.LOGGERS, "wandb", Logger("json", start))
    return made


def test_every_logger_has_a_name_in_the_configuration():
    assert ("auto", *loggers.LOGGERS) == training_fields.LOGGERS


def test_a_logger_that_fails_is_said_once_and_the_run_goes_on(tmp_path, stub):
    said = []
    writer = opened(tmp_path, "wandb", said=said)
    for step in (1, 2, 3):
        writer.write(step, {"train/loss": 1.0})
    writer.close(finished=True)
    assert said == [
        "wandb: no route to host; it gets no more metrics, the run continues and metrics.jsonl "
        "has all of them"
    ]
    assert stub[0].steps == [1, 2]
    assert steps(tmp_path) == [1, 2, 3]


def test_a_record_that_fails_ends_the_run(tmp_path, stub):
    writer = opened(tmp_path, "wandb")
    writer.close(finished=False)
    with pytest.raises(ValueError, match="closed file"):
        writer.write(1, {"train/loss": 1.0})
    assert (stub[0].steps, stub[0].closed) == ([], False)


def test_ids_are_kept_for_the_next_start(tmp_path, stub):
    opened(tmp_path, "wandb").close(finished=False)
    opened(tmp_path, "wandb", start=1).close(finished=True)
    assert [one.start.known for one in stub] == ["", "abc"]
    (tmp_path / loggers.IDS).write_text('{"wandb": 3}')
    with pytest.raises(WorkdirError, match=r"loggers\.json.*wandb.*begin new runs"):
        opened(tmp_path, "wandb", start=1)


def test_a_logger_that_cannot_start_is_refused_first_and_later_left_out(tmp_path, monkeypatch):
    def start(given):
        raise RuntimeError("\x1b[31mno account\x1b[0m")

    monkeypatch.setitem(loggers.LOGGERS, "wandb", Logger("json", start))
    with pytest.raises(LoggerError, match=r"^train\.loggers=wandb: wandb cannot .* no account\. "):
        opened(tmp_path, "wandb")
    said = []
    writer = opened(tmp_path, "wandb", start=1, said=said)
    writer.write(2, {"train/loss": 1.0})
    writer.close(finished=True)
    assert said == [
        "wandb cannot be started: no account; the run continues, metrics.jsonl has its metrics"
    ]


# -- which ---------------------------------------------------------------------------------------


@pytest.fixture
def nothing_installed(monkeypatch):
    monkeypatch.setattr(loggers.importlib.util, "find_spec", lambda name: None)


def test_auto_is_tensorboard_where_it_is_installed(monkeypatch, nothing_installed):
    assert loggers.chosen("auto") == loggers.chosen("") == []
    assert loggers.chosen("mlflow,wandb,mlflow") == ["wandb", "mlflow"]
    monkeypatch.undo()
    monkeypatch.setattr(loggers, "_installed", lambda package: True)
    assert loggers.chosen("auto,wandb") == ["tensorboard", "wandb"]
    loggers.check("tensorboard,wandb,mlflow")


@pytest.mark.parametrize(
    ("name", "package", "extra"),
    [
        ("tensorboard", "tensorboardX", "board"),
        ("wandb", "wandb", "wandb"),
        ("mlflow", "mlflow", "mlflow"),
    ],
)
def test_a_missing_package_is_one_line(name, package, extra, nothing_installed):
    said = rf"^train\.loggers={name}: {package} is not installed: pip install 'jaxrec\[{extra}\]'$"
    with pytest.raises(LoggerError, match=said):
        loggers.check(name)


def test_a_folder_of_that_name_is_no_package(tmp_path, monkeypatch):
    """W&B writes a folder `wandb` where it runs, and Python can import any folder."""
    (tmp_path / "some_logger").mkdir()
    monkeypatch.syspath_prepend(str(tmp_path))
    assert loggers.importlib.util.find_spec("some_logger") is not None
    assert not loggers._installed("some_logger")
    assert loggers._installed("json")


def test_unknown_names_are_refused():
    for names in ("", "auto", "tensorboard,wandb,mlflow"):
        validate(config_of(names))
    for names, wrong in (("wandb,comet", "comet"), ("wandb, mlflow", " mlflow"), (",", "")):
        with pytest.raises(ConfigError, match=rf"^train\.loggers={names!r}: {wrong!r} is none of"):
            validate(config_of(names))


def test_no_logger_is_imported_unless_it_is_named(tmp_path):
    before = set(sys.modules)
    opened(tmp_path, "").close(finished=True)
    assert not {"wandb", "mlflow", "tensorboardX"} & (set(sys.modules) - before)
    assert sorted(path.name for path in pathlib.Path(tmp_path).iterdir()) == ["metrics.jsonl"]
