"""Settings of the experiments, beside the configuration of the run that they start from.

A file in `configs/experiments_*.py` returns an `ExperimentsConfig`: a run's `Config` with the
group `experiments`. `--config.KEY=VALUE` overrides any key of either.
"""

import argparse
import ast
import copy
import dataclasses
import json
import pathlib
import re
import shlex
from collections.abc import Iterable, Sequence

from jaxrec import config as config_lib
from jaxrec.benchmark import config_file
from jaxrec.config import Config, SyntheticConfig
from jaxrec.errors import ConfigError
from jaxrec.types import Json

# keys of folders: they differ between machines, so records leave them out
PLACES = ("data.cache_dir", "train.compilation_cache")
FRACTIONS = ("longer", "steps")  # lists of numbers that need not be whole
BASELINES = ("mean-pooled", "constant", "mean-pooled-parts", "semi-local")  # rows of `gap`
FILES = ("path", "items_path")  # keys of data.*


@dataclasses.dataclass
class ProbeData(SyntheticConfig):
    """Fewer items than `SyntheticConfig`: chance is higher, and a return less to learn.

    How many steps a model needs to learn what returns depends on its size: with the quick
    configuration 700 were too few for its tokens, 3,000 are enough.
    """

    users: int = 1500
    items: int = 121
    events: int = 160
    interests: int = 12
    gap: int = 48


@dataclasses.dataclass
class ProbeConfig:
    """The synthetic data of `probe`, and how a model is trained on it."""

    data: ProbeData = dataclasses.field(default_factory=ProbeData)
    holdout: int = 20  # events per user that are tested
    segment_size: int = 24
    max_segments: int = 4
    tokens: int = 4
    batch_size: int = 16
    learning_rate: float = 5e-3
    steps: int = 800
    edges: tuple[int, ...] = (56, 64, 72)  # of the buckets of distance, events


@dataclasses.dataclass
class ExperimentsSettings:
    """The group `experiments`: what is varied, over which seeds and users."""

    seeds: tuple[int, ...] = (0, 1, 2)  # one training run each, for every setting
    users: int = 1000  # evaluated users, drawn once; 0: all with `min_events`
    min_events: int = 0  # users with fewer events are not evaluated
    bootstrap: int = 1000  # resamples of seeds and users
    # numbers of segments: histories of (segments + 1) x layout.segment_size - 1 events
    lengths: tuple[int, ...] = (1, 2, 4, 8)
    tokens: tuple[int, ...] = (1, 2, 4, 8, 16, 32)
    segments: tuple[int, ...] = (1, 2, 4, 8, 16)
    ages: tuple[int, ...] = (0, 1, 2, 5, 10, 20, 50, 100)  # events that a state is behind
    last: int = 5  # newest events per user that staleness and forms ask for
    longer: tuple[float, ...] = (0.5, 1.0, 2.0, 4.0)  # served segments / trained ones
    steps: tuple[float, ...] = (0.25, 0.5, 1.0)  # trainings of `steps` / train.steps
    components: int = 6  # of the factorisation of attention
    # half-lives, in events and in seconds, of the counters of the second part of `gap`; empty: none
    counters: tuple[float, ...] = ()
    counter_times: tuple[float, ...] = ()
    # of data with planted returns these alone are targets (`gap` has rows of both): most other
    # targets say little about old events
    returns: bool = True
    baselines: tuple[str, ...] = ()  # of `gap`, some of BASELINES
    # rows of `ablations`, "NAME: KEY=VALUE; KEY=VALUE"; the first is the base of the others
    ablations: tuple[str, ...] = ()
    probe: ProbeConfig = dataclasses.field(default_factory=ProbeConfig)


@dataclasses.dataclass
class ExperimentsConfig(Config):
    """A run's configuration with the group `experiments`."""

    experiments: ExperimentsSettings = dataclasses.field(default_factory=ExperimentsSettings)


def validate(config: object) -> ExperimentsConfig:
    """The configuration, checked; raises ConfigError naming the key that cannot work."""
    if not isinstance(config, ExperimentsConfig):
        raise ConfigError(
            f"--config: get_config returned a {type(config).__name__}, needed is an "
            "ExperimentsConfig, as in configs/experiments_quick.py"
        )
    config_lib.validate(config)
    chosen = config.experiments
    config_lib.check_types(chosen, ExperimentsSettings(), "experiments.")
    least = {"users": 0, "min_events": 0, "bootstrap": 1, "last": 1, "components": 1}
    for key, low in least.items():
        _at_least(f"experiments.{key}", getattr(chosen, key), low)
    lows: dict[str, float] = {"seeds": 0, "lengths": 1, "tokens": 1, "segments": 1, "ages": 0}
    lows |= dict.fromkeys(FRACTIONS, 0.01)
    for key, bound in lows.items():
        _numbers(f"experiments.{key}", getattr(chosen, key), bound, key in FRACTIONS)
    unknown = [name for name in chosen.baselines if name not in BASELINES]
    if unknown:
        raise ConfigError(
            f"experiments.baselines={chosen.baselines!r}: {unknown[0]!r} is none; allowed are "
            f"{', '.join(BASELINES)}"
        )
    _numbers("experiments.probe.edges", chosen.probe.edges, 1, False)
    for key in ("holdout", "segment_size", "max_segments", "tokens", "batch_size", "steps"):
        _at_least(f"experiments.probe.{key}", getattr(chosen.probe, key), 1)
    if config.eval.filter_seen and (chosen.counters or chosen.counter_times):
        raise ConfigError(
            f"experiments.counters={chosen.counters!r}: counters are of items that the user had, "
            "which eval.filter_seen=True leaves out; set one of the two alone"
        )
    if config.data.split != "last":
        raise ConfigError(
            f"data.split={config.data.split!r}: experiments ask every user for the newest events, "
            "'last' is needed"
        )
    if chosen.last > config.data.holdout:
        raise ConfigError(
            f"experiments.last={chosen.last}: at most data.holdout={config.data.holdout}, older "
            "events are trained on"
        )
    if config.layout.mode != "compressed":
        raise ConfigError(
            f"layout.mode={config.layout.mode!r}: experiments start from 'compressed' and train "
            "the other modes themselves"
        )
    return config


def _at_least(key: str, value: float, low: float) -> None:
    if value < low:
        raise ConfigError(f"{key}={value!r}: allowed is {low} and more")


def _numbers(key: str, values: tuple[float, ...], low: float, fractions: bool) -> None:
    kinds = (int, float) if fractions else (int,)
    bad = [v for v in values if isinstance(v, bool) or not isinstance(v, kinds) or v < low]
    if not values or bad or list(values) != sorted(set(values)):
        what = "numbers" if fractions else "integers"
        raise ConfigError(f"{key}={values!r}: increasing {what} from {low} on are needed")


def load(file: str, overrides: Sequence[str] = ()) -> ExperimentsConfig:
    """The configuration that `FILE.py[:ARGUMENT]` returns, with `--config.KEY=VALUE` applied."""
    known = sorted(map(str, pathlib.Path(file.partition(":")[0]).parent.glob("experiments_*.py")))
    hint = f"; there are {', '.join(known)}" if known else ""
    config = config_file.get_config(file, hint)
    for text in overrides:
        override(config, text)
    return validate(config)


def override(config: object, text: str) -> None:
    """Applies one `--config.KEY=VALUE`. Raises ConfigError for an unknown key."""
    match = re.fullmatch(r"--config\.([\w.]+)=(.*)", text, re.DOTALL)
    if match is None:
        raise ConfigError(f"{text!r}: unknown argument; keys are set by --config.KEY=VALUE")
    key, raw = match.groups()
    config_lib.check_key(config, key)
    group, _, name = key.rpartition(".")
    parent = config_lib.lookup(config, group) if group else config
    setattr(parent, name, _value(key, raw, getattr(parent, name)))


def _value(key: str, raw: str, old: object) -> object:
    """`raw` as a value of the type of `old`."""
    if isinstance(old, str):
        return raw
    try:
        value = ast.literal_eval(raw)
    except (ValueError, SyntaxError) as error:
        raise ConfigError(f"{key}={raw!r}: a {type(old).__name__} is needed") from error
    if isinstance(old, tuple):
        return tuple(value) if isinstance(value, tuple | list) else (value,)
    return float(value) if type(old) is float and type(value) is int else value


def record(config: ExperimentsConfig) -> Json:
    """The configuration as JSON, without folders of a machine.

    Those of `PLACES` are left out, and files of data have the name of their folder alone.
    """
    kept = copy.deepcopy(config)
    for name in FILES:
        path = pathlib.Path(getattr(kept.data, name))
        if path.is_absolute():
            setattr(kept.data, name, "/".join(path.parts[-2:]))
    for key in PLACES:
        group, name = key.split(".")
        setattr(getattr(kept, group), name, "")
    return json.loads(config_lib.to_json(kept))


def rebuild(values: Json) -> ExperimentsConfig:
    """The inverse of `record`; raises ConfigError on an unknown key."""
    return validate(config_lib.build(ExperimentsConfig, values, ""))


def digest(config: ExperimentsConfig) -> str:
    """12 hex digits of what decides the numbers of all experiments."""
    return config_lib.digest(record(config))


def command(arguments: Sequence[str]) -> str:
    """The command line to repeat, without the folders of a machine."""
    places = tuple(f"--config.{key}=" for key in PLACES)
    kept, skip = [], False
    for text in arguments:
        if skip:
            skip = False
        elif text in ("--runs", "--bench"):
            skip = True
        elif text.startswith((*places, "--runs=")):
            continue
        else:
            kept.append(relative(text))
    return shlex.join(["python", "-m", "jaxrec.experiments", *kept])


def relative(text: str) -> str:
    """`PATH` or `--flag=PATH` without machine folders: relative to here, or the last name."""
    name, equals, value = text.partition("=")
    path = pathlib.Path(value if equals else text)
    if not path.is_absolute():
        return text
    here = pathlib.Path.cwd()
    short = str(path.relative_to(here)) if path.is_relative_to(here) else path.name
    return f"{name}={short}" if equals else short


def parser(names: Iterable[str] = ()) -> argparse.ArgumentParser:
    """Arguments of `python -m jaxrec.experiments`, with the experiments' names for --help."""
    parser = argparse.ArgumentParser(
        prog="python -m jaxrec.experiments",
        description="Trains, evaluates, tabulates and plots; see docs/experiments.md.\n\n"
        "  NAME --config=configs/experiments_quick.py --output=DIR   one experiment, or `all`\n"
        "  NAME --config=FILE.py --only=ROW,...                      its runs alone, no table\n"
        "  report --output=DIR [--bench=BENCHDIR]                    the page of the tables\n"
        "  verify FILE.json [--row=NAME]                             rows made again, compared",
        epilog="--config.KEY=VALUE overrides any key, --config.experiments.seeds=0,1,2 among "
        "them. Trained runs\nare kept below --runs and shared; a stopped command continues "
        "where it was.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("name", help=", ".join([*names, "all", "report", "verify"]))
    parser.add_argument("file", nargs="?", default="", help="verify: the results file")
    parser.add_argument("--config", default="", help="configs/experiments_*.py")
    parser.add_argument("--output", default="", help="folder of tables, plots and the page")
    parser.add_argument("--runs", default="runs/experiments", help="trained runs, shared")
    parser.add_argument("--bench", default="", help="report: folder of `jaxrec.benchmark`")
    parser.add_argument(
        "--only",
        action="append",
        default=[],
        metavar="ROW,...",
        help="train and evaluate the runs of these rows alone and write nothing, so that several "
        "processes can share the work",
    )
    parser.add_argument("--row", default="", help="verify: this row alone")
    parser.add_argument("--tolerance", type=float, default=1e-6, help="verify: relative")
    parser.add_argument("--train", action="store_true", help="verify: train runs that are missing")
    return parser
