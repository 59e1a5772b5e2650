"""Trained runs of the experiments: cached by configuration and evaluated once.

    <runs>/<digest>/            a run's folder, as `train.py` makes it
    <runs>/<digest>/ranks/      arrays of its evaluations, one .npz each

Experiments that need the same configuration share its run. A killed training continues.
"""

import copy
import dataclasses
import functools
import os
import pathlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np

from jaxrec import config as config_lib
from jaxrec.config import Config
from jaxrec.data import pipeline
from jaxrec.data.prepared import Prepared
from jaxrec.errors import ConfigError, WorkdirError
from jaxrec.evaluation import baselines, evaluator
from jaxrec.evaluation.ranks import Ranks, model_ranks, rule_ranks
from jaxrec.experiments.settings import ExperimentsConfig
from jaxrec.model import recommender
from jaxrec.runtime import compile_cache, loggers, workdir
from jaxrec.runtime import mesh as mesh_lib
from jaxrec.runtime.checkpoint import steps
from jaxrec.runtime.preemption import Preemption
from jaxrec.session import CHECKPOINTS, Session
from jaxrec.types import Batch

Say = Callable[[str], None]
RuleOf = Callable[[Session], baselines.Rule]  # a rule may know the data
DONE = "finished.json"
# keys that a run may change when it continues, but that decide which parameters are evaluated
DECIDING = (
    "train.steps",
    "train.eval_every",
    "train.patience",
    "eval.filter_seen",
    "data.path",
    "data.items_path",
)


def known_rule(name: str) -> RuleOf:
    """The rule `name` of `evaluation.baselines.rules`."""
    return lambda session: baselines.rules(session.config.layout.recent)[name]


class MissingRun(WorkdirError):
    """A run that is needed but may not be trained now."""


def plain(config: Config) -> Config:
    """A copy of the keys that belong to a run."""
    fields = {f.name: copy.deepcopy(getattr(config, f.name)) for f in dataclasses.fields(Config)}
    return Config(**fields)


def with_values(config: Config, **changes: Any) -> Config:
    """A copy with other values: `with_values(config, layout__tokens=8)`.

    Raises ConfigError where a value cannot work.
    """
    changed = plain(config)
    for key, value in changes.items():
        *groups, name = key.split("__")
        setattr(functools.reduce(getattr, groups, changed), name, value)
    return config_lib.validate(changed)


def name_of(config: Config) -> str:
    """Digest of what decides a run's parameters, not of logging, evaluation or places.

    Keys at their default are left out, so that runs keep their names when a key is added.
    """
    flat, defaults = workdir.flatten(plain(config)), workdir.flatten(Config())
    kept = {k: v for k, v in flat.items() if k in DECIDING or not workdir.is_free(k)}
    kept["train.init_from"] = pathlib.Path(config.train.init_from).name  # not where it is kept
    return config_lib.digest({k: v for k, v in kept.items() if v != defaults[k]})


class Lab:
    """Runs, their ranks, and the users that all experiments evaluate.

    say: prints progress. train: missing runs are trained, else MissingRun is raised. fresh:
    ranks are computed again and not stored, for `verify`. given: folders of finished runs that
    stand for those of a `layout.mode`.
    """

    def __init__(
        self,
        config: ExperimentsConfig,
        runs: pathlib.Path,
        say: Say = print,
        train: bool = True,
        fresh: bool = False,
        given: Mapping[str, pathlib.Path] | None = None,
    ) -> None:
        self.config, self.folder, self.say = config, runs, say
        self.train, self.fresh = train, fresh
        self.base = plain(config)
        # layout.mode -> configuration of a run that was given
        self.given = {mode: workdir.load_config(path) for mode, path in (given or {}).items()}
        self._given = {name_of(self.given[m]): path for m, path in (given or {}).items()}
        self._trained: set[str] = set()
        self._sessions: dict[str, Session] = {}
        self._users: dict[str, np.ndarray] = {}

    @property
    def seeds(self) -> tuple[int, ...]:
        """One training run per setting for each of them."""
        return self.config.experiments.seeds

    def place(self, config: Config) -> pathlib.Path:
        """The folder of a run."""
        name = name_of(config)
        return self._given.get(name, self.folder / name)

    def finished(self, config: Config) -> bool:
        """Whether a run is trained."""
        folder = self.place(config)
        trained = bool(steps(folder / CHECKPOINTS))
        return trained and (name_of(config) in self._given or (folder / DONE).is_file())

    def untrained(self, config: Config) -> Session:
        """Data and model of a run that may not be trained yet."""
        self._share_compiled(config)
        return Session(self._with_data(config), self.place(config))

    @functools.cached_property
    def data(self) -> Session:
        """The base run for its data alone."""
        return self.untrained(self.base)

    def session(self, config: Config) -> Session:
        """Data, model and checkpoints of a run, which is trained first where it is missing."""
        name = name_of(config)
        folder = self.place(config)
        self._share_compiled(config)
        config = self._with_data(config)
        if name not in self._trained:
            finished = self.finished(config)
            if not finished and not self.train:
                raise MissingRun(
                    f"{folder}: no finished run of this configuration ({essence(config)}); name "
                    "the folder of runs with --runs, or run the experiment again to train it"
                )
            if not finished:
                self._fit(config, folder)
            self._trained.add(name)
        if name not in self._sessions:
            if len(self._sessions) > 8:  # parameters and compiled functions are large
                self._sessions.clear()
            session = Session(config, folder)
            workdir.claim(folder, config, session.digests)  # of this data and configuration
            self._sessions[name] = session
        return self._sessions[name]

    def _with_data(self, config: Config) -> Config:
        """The configuration with the folder of prepared data, which runs share."""
        if config.data.cache_dir or name_of(config) in self._given:
            return config
        return with_values(config, data__cache_dir=str(self.folder / "data"))

    def _share_compiled(self, config: Config) -> None:
        """Compiles once for all seeds of a setting and for later starts."""
        setting = config.train.compilation_cache
        if setting != compile_cache.OFF and jax.config.values["jax_compilation_cache_dir"] is None:
            cache = setting or str((self.folder / "compiled").absolute())
            jax.config.update("jax_compilation_cache_dir", cache)
            jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)

    def _fit(self, config: Config, folder: pathlib.Path) -> None:
        loggers.check(config.train.loggers)
        self.say(f"training {folder.name}: {essence(config)}")
        folder.mkdir(parents=True, exist_ok=True)
        with Preemption(ctrl_c=True) as preemption:
            mesh = mesh_lib.make_mesh(config.mesh)
            with preemption.interrupting():
                session = Session(config, folder, mesh, preemption.poll)
            try:
                result = session.fit(preemption=preemption)
            except workdir.InUse as error:
                raise workdir.InUse(
                    f"run {folder.name} ({essence(config)}) is being trained by another process: "
                    "start again when it has finished, or name other rows with --only or other "
                    "seeds with --config.experiments.seeds"
                ) from error
        if result.stopped == "preempted":
            raise preemption.stopped()
        workdir.write_text(folder / DONE, f'{{"step": {result.step}}}\n')

    def users(self, prepared: Prepared) -> np.ndarray:
        """Dense indices of the evaluated users, the same for every run on this data."""
        settings = self.config.experiments
        if prepared.digest not in self._users:
            tested = prepared.boundaries.validation_end < prepared.lengths
            eligible = np.flatnonzero(tested & (prepared.lengths >= settings.min_events))
            if not len(eligible):
                raise ConfigError(
                    f"experiments.min_events={settings.min_events}: no user has so many events "
                    "and, with data.holdout, targets to test; the longest history has "
                    f"{int(prepared.lengths.max())} events"
                )
            order = np.random.default_rng(0).permutation(eligible)
            self._users[prepared.digest] = np.sort(order[: settings.users or None])
        return self._users[prepared.digest]

    def ranks(self, config: Config, row: str) -> Ranks:
        """Ranks of every test target of the evaluated users by a run.

        row: compressed, masked, without-tokens, recent or full, as in `evaluation`, or `served N`:
        masked forwards over N complete segments. Targets are in the order of `Ranks.user`.
        """

        def make() -> dict[str, np.ndarray]:
            session = self.session(config)
            trained = session.trained_model()
            model = trained.model
            chosen = self.users(session.prepared)
            if row.startswith("served "):
                count = int(row.removeprefix("served "))
                model, batches = served(session, chosen, count)
            else:
                batches = session.eval_batches(chosen, recent_only=row == "without-tokens")
            ranks = model_ranks(
                evaluator.predictor(row, model),
                trained.params,
                model.item_index(trained.params),
                batches,
                history_items=evaluator.history_items(model),
                history=session.history if config.eval.filter_seen else None,
                chunk=session.config.eval.chunk,
                lists=False,
            )
            return _columns(ranks)

        return Ranks(**self.kept(config, row, make), lists=None)

    def rule_ranks(self, config: Config, name: str, rule: RuleOf) -> Ranks:
        """Ranks of the same targets by a rule without parameters.

        config: of a run, in whose folder they are kept under the name.
        """

        def make() -> dict[str, np.ndarray]:
            session = self.session(config)
            return _columns(
                rule_ranks(
                    rule(session),
                    baselines.Popularity(session.prepared.counts),
                    session.history,
                    self.ranks(config, config.layout.mode),
                    filter_seen=config.eval.filter_seen,
                )
            )

        return Ranks(**self.kept(config, f"rule {name}", make), lists=None)

    def kept(
        self, config: Config, what: str, make: Callable[[], dict[str, np.ndarray]]
    ) -> dict[str, np.ndarray]:
        """Arrays of an evaluation of a run, computed once and stored in the run's folder.

        what: names the evaluation among all others of the run.
        """
        settings = self.config.experiments
        deciding = [what, settings.users, settings.min_events, config.eval.split]
        if config.eval.filter_seen:
            deciding.append("seen items filtered")
        key = config_lib.digest(*deciding)
        file = self.place(config) / "ranks" / f"{key}.npz"
        if file.is_file() and not self.fresh:
            with np.load(file) as stored:
                return dict(stored)
        self.session(config)
        self.say(f"evaluating {file.parent.parent.name}: {what}")
        arrays = make()
        if not self.fresh:
            file.parent.mkdir(parents=True, exist_ok=True)
            # of this process: another one may make the same ranks at the same time
            temporary = file.with_suffix(f".{os.getpid()}.tmp.npz")
            np.savez(temporary, **arrays)  # type: ignore[arg-type]
            temporary.replace(file)
        return arrays


def _columns(ranks: Ranks) -> dict[str, np.ndarray]:
    """The columns of ranks, without lists."""
    columns = ranks._asdict()
    del columns["lists"]
    return columns


def served(
    session: Session, users: np.ndarray, count: int
) -> tuple[recommender.Model, Iterator[Batch]]:
    """The model and the test batches for histories of `count` complete segments.

    A position still sees the tokens of the `max_segments` segments before it, as in training;
    older events reach it through the tokens in between.
    """
    config = session.config
    layout = session.layout.with_segments(count)
    model = recommender.build(config.model, config.loss, layout, session.model.num_items)
    batches = pipeline.eval_batches(
        session.prepared,
        config.layout,
        split=config.eval.split,
        batch_size=config.eval.batch_size,
        users=users,
        num_segments=count,
    )
    return model, batches


def essence(config: Config) -> str:
    """A run in a few words, for progress and errors."""
    layout, data = config.layout, config.data
    text = f"{data.dataset}, {layout.mode}, {layout.max_segments} x {layout.segment_size}"
    if layout.mode == "compressed":
        text += f" + {layout.tokens} tokens"
    if config.model.state != "kv":
        text += f", state {config.model.state}"
    return f"{text}, seed {config.seed}, {config.train.steps} steps"
