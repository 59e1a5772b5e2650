"""What `train.py` and `eval.py` share: data and models of a run."""

import pathlib
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np

from jaxrec import data, evaluation, recommender
from jaxrec.config import Config, ConfigError, digest, validate
from jaxrec.data import pipeline
from jaxrec.layout import SegmentLayout
from jaxrec.runtime import checkpoint, workdir
from jaxrec.types import Batch

CHECKPOINTS = "checkpoints"


class Session:
    """A validated configuration with its data and model."""

    def __init__(self, config: Config, folder: pathlib.Path):
        self.config = validate(config)
        self.folder = folder
        cache = config.data.cache_dir or folder / "data"
        self.prepared = data.prepare(config.data, cache)
        self.layout = SegmentLayout.from_config(config.layout)
        self.model = recommender.build(
            config.model, config.loss, self.layout, self.prepared.num_items
        )
        self._histories: dict[int, np.ndarray] = {}

    @property
    def digests(self) -> dict[str, str]:
        vocabulary = digest([str(raw) for raw in self.prepared.vocabulary.ids])
        return {"data": self.prepared.digest, "vocabulary": vocabulary}

    def history(self, user: int) -> np.ndarray:
        """All items of a user, oldest first."""
        if user not in self._histories:
            self._histories[user] = self.prepared.source[user].items
        return self._histories[user]

    def train_batches(self, start_step: int) -> Iterator[Batch]:
        config = self.config
        return pipeline.train_batches(
            self.prepared,
            config.layout,
            config.train.batch_size,
            config.seed,
            start_step,
            config.train.vary_recent,
            config.data.workers,
            config.data.worker_processes,
            jax.process_index(),
            jax.process_count(),
        )

    def eval_batches(self, users: np.ndarray | None = None, split: str = "") -> Iterator[Batch]:
        config = self.config
        split = split or config.eval.split
        return pipeline.eval_batches(
            self.prepared, config.layout, split, config.eval.batch_size, users=users
        )

    def validation(self) -> Callable[[Any], dict[str, float]]:
        """params -> metrics on (a fixed sample of) the validation users, by masked forwards."""
        config = self.config
        users = None
        if config.train.validation_users:
            boundaries = self.prepared.boundaries
            able = np.flatnonzero(boundaries.validation_end > boundaries.train_end)
            order = np.random.default_rng(config.seed).permutation(able)
            users = np.sort(order[: config.train.validation_users])
        predict = jax.jit(self.model.predict)
        name, _, k = config.train.metric.partition("@")
        wanted = {("recall", 10), ("ndcg", 10), (name, int(k))}

        def evaluate(params: Any) -> dict[str, float]:
            ranks = evaluation.model_ranks(
                predict,
                params,
                self.model.item_table(params),
                self.eval_batches(users, "validation"),
                chunk=config.eval.chunk,
                lists=False,
            )
            return {
                f"{metric}@{top}": float(evaluation.per_user(ranks, metric, top)[1].mean())
                for metric, top in sorted(wanted)
            }

        return evaluate

    def subject(self) -> evaluation.Subject:
        """The best checkpoint of the run."""
        like = jax.eval_shape(self.model.init, jax.random.key(0))
        _, params = checkpoint.load_params(self.folder / CHECKPOINTS, like)
        return evaluation.Subject(self.model, params, self.eval_batches)

    def evaluate(self, say: evaluation.Say) -> dict[str, Any]:
        """All rows of `eval.mode`."""
        full = None
        if self.config.eval.full_workdir:
            other = pathlib.Path(self.config.eval.full_workdir)
            full_config = workdir.load_config(other)
            if full_config.layout.mode != "full":
                raise ConfigError(
                    f"eval.full_workdir={other}: layout.mode there is "
                    f"{full_config.layout.mode!r}, needed is 'full'"
                )
            full_config.eval = self.config.eval
            full_config.data.cache_dir = str(self.config.data.cache_dir or self.folder / "data")
            session = Session(full_config, other)
            if session.digests != self.digests:
                raise ConfigError(f"eval.full_workdir={other}: trained on other data or split")
            full = session.subject()
        return evaluation.evaluate(
            self.config,
            self.subject(),
            counts=self.prepared.counts,
            history=self.history,
            full=full,
            say=say,
        )
