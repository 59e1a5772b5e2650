"""The answer to one question: is compressing these histories worth it, on this machine?

Trains what is missing of three models (the recent window alone, compressed, full history), or
takes finished runs, measures their quality (`gap`) and their time (`cost`), and writes both tables
and the page. A stopped `answer` goes on where it was.
"""

import argparse
import dataclasses
import pathlib
from collections.abc import Mapping, Sequence

import numpy as np

from jaxrec.api.defaults import table_config
from jaxrec.config import Config, lookup
from jaxrec.config.recipe import load_recipe
from jaxrec.errors import ConfigError
from jaxrec.experiments import (
    gap,
    page,
    plots,
    registry,
    result_table,
    settings,
    timed,
    verdict,
)
from jaxrec.experiments.runs import Lab, with_values
from jaxrec.experiments.settings import ExperimentsConfig
from jaxrec.runtime import workdir
from jaxrec.types import Json

MODES = ("recent", "compressed", "full")
VERDICT = "verdict.txt"


def answer(lab: Lab, folder: pathlib.Path, command: str) -> list[str]:
    """The verdict, three lines; tables, plots and page are in `folder` then.

    lab: its base run is compressed. command: to repeat it, for the tables.
    """
    plots.check()
    folder.mkdir(parents=True, exist_ok=True)
    for line in expected(lab):
        lab.say(line)
    tables = [_made(lab, registry.EXPERIMENTS[name](lab), command) for name in ("gap", "cost")]
    for table in tables:
        result_table.write(folder, table)
        plots.write(folder, table)
    page.write(folder, None)
    lines = conclusion(*(table["rows"] for table in tables))
    workdir.write_text(folder / VERDICT, "\n".join(lines) + "\n")
    return lines


def _made(lab: Lab, experiment: result_table.Experiment, command: str) -> Json:
    rows = []
    for cell in experiment.cells:
        lab.say(f"{experiment.name}: {cell.name}")
        rows.append(cell.make())
    return result_table.result(
        experiment, rows, lab.config, registry.protocol(lab, experiment), command
    )


def expected(lab: Lab) -> list[str]:
    """What is trained and how long that takes at most, from a few steps of each model."""
    runs = lab.given or gap.modes_of(gap.base_of(lab))
    missing = {
        mode: [s for s in lab.seeds if not lab.finished(with_values(runs[mode], seed=s))]
        for mode in MODES
    }
    modes = [mode for mode in MODES if missing[mode]]
    if not modes:
        return ["all models are trained already; only missing measurements are made"]
    lab.say(f"timing {timed.STEPS} training steps of {verdict.listed(modes)} (compiling first) …")
    seconds = timed.training_seconds(lab, modes)
    hours = {
        mode: float(np.median(seconds[mode])) * runs[mode].train.steps * len(missing[mode]) / 3600
        for mode in modes
    }
    parts = " + ".join(f"{mode} {duration(hours[mode])}" for mode in modes)
    train = lab.base.train
    early = (
        f"a training stops when {train.patience} validations bring nothing better"
        if train.patience
        else "every training takes all of its steps (train.patience=0)"
    )
    return [
        f"training {sum(map(len, missing.values()))} models takes {duration(sum(hours.values()))} "
        f"at most on this machine ({parts}), validations not counted; {early}",
        "stop whenever you like: the same command goes on",
    ]


def duration(hours: float) -> str:
    """A time as people say it.

    >>> duration(0.001), duration(0.5), duration(1.75)
    ('less than a minute', '30 min', '1 h 45 min')
    """
    minutes = round(60 * hours)
    if minutes < 1:
        return "less than a minute"
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def conclusion(gap_rows: Sequence[Json], cost_rows: Sequence[Json]) -> list[str]:
    """Three lines: what may be said, what it costs, and the figures behind it."""
    by_name = {row["name"]: row for row in gap_rows}
    compressed = by_name["compressed"]
    title = verdict.METRICS[verdict.METRIC]
    levels = ", ".join(
        f"{name} {verdict.Estimate.of(by_name[name], verdict.METRIC)}"
        for name in ("popularity", *MODES)
    )
    seeds = len(compressed[f"{verdict.METRIC}_seeds"])
    return [
        f"{verdict.verdict(gap_rows).title}.",
        _costs({(row["part"], row["name"]): row for row in cost_rows}, compressed),
        f"{title}: {levels}; {compressed['users']:,} users, {compressed['targets']:,} targets, "
        f"{seeds} training{'s' if seeds > 1 else ''} each, 95 % intervals.",
    ]


def _costs(rows: Mapping[tuple[str, str], Json], compressed: Json) -> str:
    """What compression saves here, whatever it keeps."""

    def time(part: str) -> str:
        row, full = rows[part, "compressed"], rows[part, "full"]
        return f"{100 * row['ms_of_full']:.0f} % ({row['ms']:.3g} ms against {full['ms']:.3g} ms)"

    request, many = (timed.title(batch) for batch in timed.BATCHES)
    return (
        f"Of full history's cost compressed takes {100 * compressed['flops_of_full']:.0f} % of the "
        f"FLOPs of a request; of the time, here, {time(request)} for a {request}, "
        f"{time(many)} for {many.removeprefix('request of ')}, {time(timed.TRAINING)} for a "
        f"training step; a user's state has {compressed['state_bytes'] / 1024:.1f} KB."
    )


# -- what is asked ---------------------------------------------------------------------------


def of_recipe(recipe: str) -> ExperimentsConfig:
    """The configuration of a recipe, evaluated on all users. Raises ConfigError."""
    found = load_recipe(recipe)
    if isinstance(found, ExperimentsConfig):
        return found
    if not isinstance(found, Config):
        raise ConfigError(
            f"--config={recipe}: get_config returned a {type(found).__name__}, not a jaxrec Config"
        )
    return _of_all_users(found)


def of_events(file: str) -> ExperimentsConfig:
    """Settings for a file of events, which its data should complete (`jaxrec.data.advised`)."""
    config = table_config()
    config.data.path = file
    return _of_all_users(config)


def _of_all_users(config: Config) -> ExperimentsConfig:
    made = ExperimentsConfig(**vars(config))
    made.experiments.users = 0
    return made


def of_runs(given: Mapping[str, pathlib.Path]) -> ExperimentsConfig:
    """The configuration of finished runs by layout.mode.

    Raises WorkdirError, ConfigError: runs that cannot be compared, naming the key.
    """
    configs = {mode: workdir.load_config(folder) for mode, folder in given.items()}
    for mode, config in configs.items():
        where = f"--{mode}={given[mode]}"
        if config.layout.mode != mode:
            raise ConfigError(f"{where}: layout.mode there is {config.layout.mode!r}")
        if config.model.repeat_half_lives or config.model.repeat_half_times:
            raise ConfigError(
                f"{where}: its scores count the user's own items (model.repeat_half_lives, "
                "model.repeat_half_times), so what tokens keep would not show; train without "
                "counters, or let --config train all three"
            )
    base = configs["compressed"]
    for mode, config in configs.items():
        for key in ("data", "seed", "eval.filter_seen", "eval.split"):
            own, other = lookup(config, key), lookup(base, key)
            if key == "data":
                own, other = (dataclasses.replace(data, cache_dir="") for data in (own, other))
            if own != other:
                raise ConfigError(
                    f"--{mode}={given[mode]}: {key} is not that of the compressed run; compare "
                    "runs on the same data and protocol"
                )
    return asked(_of_all_users(base), (base.seed,))


def asked(config: ExperimentsConfig, seeds: tuple[int, ...]) -> ExperimentsConfig:
    """The configuration with these seeds, validated."""
    config.experiments.seeds = seeds
    # other experiments' key, whose default may be more than the data holds out
    config.experiments.last = min(config.experiments.last, config.data.holdout)
    return settings.validate(config)


def command(args: argparse.Namespace, overrides: Sequence[str]) -> str:
    """The command line to repeat."""
    flags = [f"--{k}={v}" for k, v in vars(args).items() if v not in ("", 1)]
    return " ".join(["jaxrec savings", *(settings.relative(flag) for flag in flags), *overrides])


HIDDEN = ("_gap", "_without_gap", "remembered_bytes", "pending_bytes", "token_bytes", "users")


def shown(rows: Sequence[Json]) -> list[Json]:
    """The rows with the columns that a first look needs; the page has all of them."""
    ends = tuple(f"{end}{part}" for end in HIDDEN for part in ("", "_low", "_high"))
    dropped = {"series", "targets", "still_rising", "mflop_extend_per_event", "rounds"}
    if len({row.get("part") for row in rows}) == 1:
        dropped.add("part")
    return [
        {key: value for key, value in row.items() if not key.endswith(ends) and key not in dropped}
        for row in rows
    ]
