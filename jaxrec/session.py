"""A run: its data, model, training and evaluation, as `train.py` and `eval.py` use them."""

import contextlib
import functools
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence

import jax
import numpy as np
from jax.sharding import Mesh

from jaxrec import data
from jaxrec.config import Config, validate
from jaxrec.data import pipeline, splits
from jaxrec.data.catalog import Catalog
from jaxrec.data.datasets import PLANTED
from jaxrec.errors import ConfigError
from jaxrec.evaluation import evaluator, report
from jaxrec.evaluation.ranks import model_ranks
from jaxrec.interop import item_towers
from jaxrec.layout import SegmentLayout
from jaxrec.model import recommender
from jaxrec.model.parameters import has_item_rows
from jaxrec.nn.item_tower import ItemTower
from jaxrec.objective import sampling
from jaxrec.runtime import checkpoint, distributed, progress, workdir
from jaxrec.runtime import mesh as mesh_lib
from jaxrec.runtime.preemption import Preemption
from jaxrec.runtime.workdir import CHECKPOINTS
from jaxrec.training import earlier_run, loop, pretrained, text_batches
from jaxrec.training.hooks import Hook
from jaxrec.training.loop import Result
from jaxrec.training.task import DataIdentity, Task
from jaxrec.training.text_step import TextItems
from jaxrec.training.validation import Evaluate
from jaxrec.training.window import StepCost
from jaxrec.types import Array, Batch, Json, Params

ITEM_VECTORS = "item_vectors"  # folder of a run for vectors of item texts


class Session:
    """A validated configuration with its data and model.

    folder: of the run. mesh: the devices of training and evaluation (default: training makes
    `config.mesh`, evaluation runs on the first device); with several processes it is needed. poll:
    called between batches of evaluation, may raise (see `Preemption.poll`).
    """

    def __init__(
        self,
        config: Config,
        folder: pathlib.Path,
        mesh: Mesh | None = None,
        poll: Callable[[], None] = lambda: None,
    ):
        self.config = validate(config)
        self.folder = folder
        self.mesh, self.poll = mesh, poll
        if mesh is not None:
            mesh_lib.check_batch_size(mesh, config.eval.batch_size, "eval.batch_size")
        cache = config.data.cache_dir or folder / "data"
        # on a shared disk the first process prepares and the others find the result; on local
        # disks every process prepares the same data
        if jax.process_count() > 1:
            distributed.leader_first(lambda: data.prepare(config.data, cache))
        self.prepared = data.prepare(config.data, cache)
        self.layout = SegmentLayout.from_config(config.layout)
        self.model = recommender.build(
            config.model, config.loss, self.layout, self.prepared.num_items
        )
        self._histories: dict[int, np.ndarray] = {}

    # -- data --------------------------------------------------------------------------------

    @functools.cached_property
    def identity(self) -> DataIdentity:
        """Identity of the run's data; claiming the folder also saves the catalog for serving."""
        return DataIdentity.of(self.prepared, self.save_catalog)

    @property
    def digests(self) -> Mapping[str, str]:
        """Digests of data and vocabulary (dataset.json)."""
        return self.identity.digests

    @property
    def catalog(self) -> Catalog:
        """All that serving needs of the data."""
        prepared = self.prepared
        text_users = prepared.users.dtype.kind == "U"
        return Catalog(
            prepared.vocabulary, prepared.counts, prepared.time_origin, text_users=text_users
        )

    def save_catalog(self) -> None:
        """Writes the catalog into the run's folder."""
        self.catalog.save(self.folder)

    def check_targets(self) -> None:
        """Raises ConfigError where no user has a target: evaluation would find out late."""
        prepared = self.prepared
        for split in dict.fromkeys(("validation", self.config.eval.split)):
            first, stop = splits.target_range(prepared.boundaries, prepared.lengths, split)
            if not (first < stop).any():
                raise ConfigError(
                    f"{prepared.folder}: no user has a target for {split}. Lower data.holdout, "
                    "choose another data.split or give more events of each user"
                )

    def history(self, user: int) -> np.ndarray:
        """All items of a user (dense index), int32 [N], oldest first."""
        if user not in self._histories:
            self._histories[user] = self.prepared.source[user].items
        return self._histories[user]

    def returning(self, user: int) -> np.ndarray:
        """Bool [N], which events of a user are planted returns.

        Raises ValueError for data in which nothing was planted.
        """
        planted = self.prepared.source[user].returning
        if planted is None:
            raise ValueError("the prepared data does not say which events are returns")
        return planted

    def train_batches(self, start_step: int) -> Iterator[Batch]:
        """This process's rows of training batches `start_step`, `start_step + 1`, ..."""
        config = self.config
        return pipeline.train_batches(
            self.prepared,
            config.layout,
            batch_size=config.train.batch_size,
            seed=config.seed,
            start_step=start_step,
            vary_recent=config.train.vary_recent,
            vary_segments=config.train.vary_segments,
            length_buckets=config.train.length_buckets,
            workers=config.data.workers,
            worker_processes=config.data.worker_processes,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
        )

    def eval_batches(
        self, users: np.ndarray | None = None, split: str = "", recent_only: bool = False
    ) -> Iterator[Batch]:
        """Whole batches that hold every target of a split once (see `pipeline.eval_batches`).

        users: dense indices, default all; split: default `eval.split`.
        """
        config = self.config
        batches = pipeline.eval_batches(
            self.prepared,
            config.layout,
            split=split or config.eval.split,
            batch_size=config.eval.batch_size,
            recent_only=recent_only,
            users=users,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
        )
        # each process reads its own rows; gathered, so that every process computes the same
        # metrics over all users
        for batch in batches:
            self.poll()
            yield distributed.gather_rows(batch)

    # -- training ----------------------------------------------------------------------------

    @functools.cached_property
    def tower(self) -> ItemTower | None:
        """The item tower, where it is trained."""
        texts = self.config.model.texts
        return None if texts.train == "frozen" else item_towers.tower_of(self.config.model)

    def fresh_params(self, rng: jax.Array) -> Params:
        """Random parameters of the model, and of the item tower where it is trained."""
        return pretrained.fresh_init(self.model, self.tower)(rng)

    def init(self) -> Callable[[jax.Array], Params]:
        """Key -> initial parameters: `fresh_params`, with those of pretrained models, read now."""
        earlier = None
        # a run that is continued has its own parameters, and the earlier run may be gone
        if self.config.train.init_from and not checkpoint.steps(self.folder / CHECKPOINTS):
            earlier, line = earlier_run.read(self.config, self.model, self.digests)
            progress.say(line)
        return pretrained.starting_init(
            self.config,
            self.model,
            self.tower,
            texts=self.prepared.texts,
            counts=self.prepared.counts,
            folder=self.folder / ITEM_VECTORS,
            mesh=self.mesh,
            earlier=earlier,
            say=progress.say,
        )

    def text_items(self) -> TextItems | None:
        """What training the item tower needs; None where it is frozen or there is none."""
        if self.tower is None:
            return None
        return text_batches.make_text_items(
            self.config,
            self.model,
            self.tower,
            columns=self.prepared.texts,
            counts=self.prepared.counts,
            folder=self.folder / ITEM_VECTORS,
            mesh=mesh_lib.make_mesh(self.config.mesh) if self.mesh is None else self.mesh,
            say=progress.say,
        )

    @property
    def sampling(self) -> Array | sampling.Sampler | None:
        """What negatives are drawn by (see `Task`)."""
        if self.config.train.table_update == "adamw":
            return self.prepared.counts
        if self.config.loss.sampling == "uniform":
            return None
        return sampling.make_sampler(self.prepared.counts)

    def task(self, *, fresh: bool = False) -> Task:
        """What `fit` trains.

        fresh: without reading pretrained models, for a dry run.
        """
        dropout = self.config.train.item_dropout
        return Task(
            init=self.fresh_params if fresh else self.init(),
            loss=functools.partial(self.model.loss, item_dropout=dropout),
            negatives=self.model.negatives,
            sampling=self.sampling,
            texts=self.text_items(),
        )

    def fit(
        self,
        *,
        evaluate: Evaluate | None = None,
        preemption: Preemption | None = None,
        step_cost: StepCost | None = None,
        hooks: Sequence[Hook] = (),
    ) -> Result:
        """Trains the run of this folder, from its last checkpoint on (see `training.loop.fit`).

        evaluate: default `validation`.
        """
        return loop.fit(
            self.config,
            self.folder,
            self.task(),
            batches=self.train_batches,
            evaluate=self.validation() if evaluate is None else evaluate,
            identity=self.identity,
            mesh=self.mesh,
            preemption=preemption,
            step_cost=step_cost,
            hooks=hooks,
        )

    # -- evaluation --------------------------------------------------------------------------

    def validation(self) -> Callable[[Params], dict[str, float]]:
        """Parameters -> metrics on a fixed sample of validation users (`train.validation_users`).

        Ranks are those of one masked forward pass; `eval.filter_seen` counts here too. Metrics:
        recall@10, ndcg@10, `train.metric`.
        """
        config, users = self.config, self._validation_users()
        predict = evaluator.predictor("masked", self.model, self.mesh)
        history_items = evaluator.history_items(self.model, self.mesh)
        name, _, k = config.train.metric.partition("@")
        metrics = sorted({("recall", 10), ("ndcg", 10), (name, int(k))})

        def evaluate(params: Params) -> dict[str, float]:
            ranks = model_ranks(
                predict,
                params,
                self.model.item_index(params, self.mesh),
                self.eval_batches(users, "validation"),
                history=self.history if config.eval.filter_seen else None,
                chunk=config.eval.chunk,
                history_items=history_items,
                lists=False,
            )
            return {
                f"{metric}@{top}": float(report.per_user(ranks, metric, top)[1].mean())
                for metric, top in metrics
            }

        return evaluate

    def _validation_users(self) -> np.ndarray | None:
        """Dense indices of `train.validation_users` users; None: all."""
        size = self.config.train.validation_users
        if not size:
            return None
        boundaries = self.prepared.boundaries
        with_targets = np.flatnonzero(boundaries.validation_end > boundaries.train_end)
        order = np.random.default_rng(self.config.seed).permutation(with_targets)
        return np.sort(order[:size])

    def trained_model(self) -> evaluator.TrainedModel:
        """The model with the parameters of the run's best checkpoint."""
        key = jax.random.key(0)
        if self.mesh is None:
            like = jax.eval_shape(self.model.init, key)
        else:
            like = mesh_lib.abstract(self.mesh, lambda: self.model.init(key), has_item_rows)
            like = mesh_lib.by_rows(like, has_item_rows)
        _, params = checkpoint.load_params(self.folder / CHECKPOINTS, like)
        if self.mesh is not None:
            params = mesh_lib.laid_out(params, like)
        recent = functools.partial(self.eval_batches, recent_only=True)
        return evaluator.TrainedModel(
            self.model, params, self.eval_batches, recent_batches=recent, mesh=self.mesh
        )

    def evaluate(self, say: evaluator.Say, keep: evaluator.Keep = lambda ranks: None) -> Json:
        """The report of the run's best checkpoint: all rows of `eval.mode`.

        keep: gets the ranks of every row.
        """
        # as in training: kernels and sharding constraints ask for the mesh
        with contextlib.nullcontext() if self.mesh is None else jax.set_mesh(self.mesh):
            return evaluator.evaluate(
                self.config,
                self.trained_model(),
                counts=self.prepared.counts,
                history=self.history,
                others={name: self._other_model(name) for name in evaluator.beside(self.config)},
                returning=self.returning if self.config.data.dataset in PLANTED else None,
                say=say,
                keep=keep,
            )

    def _other_model(self, mode: str) -> evaluator.TrainedModel:
        """The model of `eval.<mode>_workdir`, a run of that layout.mode. Raises ConfigError."""
        key = f"eval.{mode}_workdir"
        folder = pathlib.Path(getattr(self.config.eval, f"{mode}_workdir"))
        config = workdir.load_config(folder)
        if config.layout.mode != mode:
            raise ConfigError(
                f"{key}={folder}: layout.mode there is {config.layout.mode!r}, needed is {mode!r}"
            )
        config.eval = self.config.eval
        config.data.cache_dir = str(self.config.data.cache_dir or self.folder / "data")
        session = Session(config, folder, self.mesh, self.poll)
        if session.digests != self.digests:
            raise ConfigError(f"{key}={folder}: trained on other data or split")
        return session.trained_model()
