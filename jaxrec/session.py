"""What `train.py` and `eval.py` share: data and models of a run."""

import functools
import pathlib
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from jaxrec import data
from jaxrec.config import Config, digest, validate
from jaxrec.data import pipeline, progress
from jaxrec.data.catalog import Catalog
from jaxrec.errors import ConfigError
from jaxrec.evaluation import evaluator
from jaxrec.interop import towers
from jaxrec.items import popularity
from jaxrec.layout import SegmentLayout
from jaxrec.model import recommender
from jaxrec.model.network import scale_at_start
from jaxrec.nn.item_tower import TOWER, ItemTower
from jaxrec.objective import sampling
from jaxrec.runtime import checkpoint, distributed, leaves, workdir
from jaxrec.runtime import mesh as mesh_lib
from jaxrec.runtime.preemption import Preemption
from jaxrec.training import loop, text_batches
from jaxrec.training.loop import Evaluate, Result
from jaxrec.training.text_step import TextItems
from jaxrec.training.window import Work
from jaxrec.types import Batch

CHECKPOINTS = "checkpoints"


class Session:
    """A validated configuration with its data and model.

    mesh: the devices of evaluation (default: the first one); of several processes all must
    give it. poll: called between batches of evaluation, may raise (see `Preemption.poll`).
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
        # on a shared disk the first process prepares and the others find it done; on disks of
        # their own they prepare the same
        if jax.process_count() > 1:
            distributed.leader_first(lambda: data.prepare(config.data, cache))
        self.prepared = data.prepare(config.data, cache)
        self.layout = SegmentLayout.from_config(config.layout)
        self.model = recommender.build(
            config.model, config.loss, self.layout, self.prepared.num_items
        )
        self._histories: dict[int, np.ndarray] = {}

    @functools.cached_property
    def tower(self) -> ItemTower | None:
        """The item tower, where it is trained."""
        texts = self.config.model.texts
        return None if texts.train == "frozen" else towers.tower_of(self.config.model)

    def blank(self, rng: jax.Array) -> Any:
        """Parameters from a key: of the model, and of the item tower where it is trained."""
        if self.tower is None:
            return self.model.init(rng)
        return text_batches.with_tower(self.model.init, self.tower)(rng)

    def init(self) -> Callable[[jax.Array], Any]:
        """`blank`; those that come from pretrained models are read first."""
        texts, given = self.config.model.texts, dict[str, np.ndarray]()
        if texts.model:
            given |= self._item_leaves()
        if texts.user_model:
            given |= towers.user_leaves(texts.user_model)
        init = towers.starting_from(self.blank, given) if given else self.blank
        if self.config.model.item_bias:
            return popularity.starting_from(
                init, self.prepared.counts, scale_at_start(self.config.loss)
            )
        return init

    def _item_leaves(self) -> dict[str, np.ndarray]:
        """What comes from the folder of the item tower."""
        config, loss, weights = self.config.model, self.config.loss, None
        given = dict[str, np.ndarray]()
        if loss.similarity == "cosine" and not loss.temperature:
            given |= towers.scale_leaf(config.texts.model)
        if self.tower is not None:
            weights = towers.tower_weights(config, self.tower)
            given |= {f"{TOWER}/{name}": x for name, x in leaves.flatten(weights).items()}
            if not config.texts.standardize:
                return given  # the first validation makes the table
        encoded = towers.encode_catalog(
            config,
            self.prepared.texts,
            self.folder / "item_vectors",
            params=weights,
            mesh=self.mesh,
            say=progress.say,
        )
        return given | towers.table_leaves(encoded.vectors, config.texts.standardize)

    def train_items(self) -> TextItems | None:
        """What training an item tower needs; None: there is none or it is frozen."""
        if self.tower is None:
            return None
        mesh = mesh_lib.make_mesh(self.config.mesh) if self.mesh is None else self.mesh
        return text_batches.train_items(
            self.config,
            self.model,
            self.tower,
            self.prepared.texts,
            self.prepared.counts,
            self.folder / "item_vectors",
            mesh,
            progress.say,
        )

    @property
    def digests(self) -> dict[str, str]:
        return self._digests(self.prepared.digest, self.prepared.num_items)

    @property
    def ancestors(self) -> list[workdir.Ancestor]:
        """What data.append was added to, oldest first: a run of it may go on with this data."""
        return [
            workdir.Ancestor(self._digests(before.digest, before.items), before.items)
            for before in self.prepared.ancestors
        ]

    def _digests(self, data: str, items: int) -> dict[str, str]:
        # of the vocabulary's beginning: an ancestor's numbers are those that items have now
        known = self.prepared.vocabulary.ids[:items]
        return {"data": data, "vocabulary": digest([str(raw) for raw in known])}

    def save_catalog(self) -> None:
        """Puts what serving needs of the data into the run's folder."""
        prepared = self.prepared
        text_users = prepared.users.dtype.kind == "U"
        catalog = Catalog(
            prepared.vocabulary, prepared.counts, prepared.time_origin, text_users=text_users
        )
        catalog.save(self.folder)

    @property
    def sampling(self) -> Any:
        """What negatives are drawn by: counts per item, or what is made of them once."""
        if self.config.train.table_update == "adamw":
            return self.prepared.counts
        if self.config.loss.sampling == "uniform":
            return None
        return sampling.make_sampler(self.prepared.counts)

    def history(self, user: int) -> np.ndarray:
        """All items of a user, oldest first."""
        if user not in self._histories:
            self._histories[user] = self.prepared.source[user].items
        return self._histories[user]

    def returning(self, user: int) -> np.ndarray:
        """Which events of a user are planted returns (synthetic data alone)."""
        planted = self.prepared.source[user].returning
        if planted is None:
            raise ValueError("the prepared data does not say which events are returns")
        return planted

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
            config.train.vary_segments,
        )

    def eval_batches(
        self, users: np.ndarray | None = None, split: str = "", recent_only: bool = False
    ) -> Iterator[Batch]:
        config = self.config
        split = split or config.eval.split
        batches = pipeline.eval_batches(
            self.prepared,
            config.layout,
            split,
            config.eval.batch_size,
            recent_only,
            users,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
        )
        # each process reads its rows of a batch; targets and ranks are everyone's, so every
        # process ends with the same figures, and a user counts once
        for batch in batches:
            self.poll()
            yield distributed.gather_rows(batch)

    def validation(self) -> Callable[[Any], dict[str, float]]:
        """params -> metrics on (a fixed sample of) the validation users, by masked forwards."""
        config = self.config
        users = None
        if config.train.validation_users:
            boundaries = self.prepared.boundaries
            able = np.flatnonzero(boundaries.validation_end > boundaries.train_end)
            order = np.random.default_rng(config.seed).permutation(able)
            users = np.sort(order[: config.train.validation_users])
        predict = evaluator.predictor("masked", self.model, self.mesh)
        own = evaluator.own_items(self.model, self.mesh)
        name, _, k = config.train.metric.partition("@")
        wanted = {("recall", 10), ("ndcg", 10), (name, int(k))}

        def evaluate(params: Any) -> dict[str, float]:
            ranks = evaluator.model_ranks(
                predict,
                params,
                self.model.candidates(params),
                self.eval_batches(users, "validation"),
                chunk=config.eval.chunk,
                own=own,
                lists=False,
                mesh=self.mesh,
            )
            return {
                f"{metric}@{top}": float(evaluator.per_user(ranks, metric, top)[1].mean())
                for metric, top in sorted(wanted)
            }

        return evaluate

    def fit(
        self,
        *,
        evaluate: Evaluate | None = None,
        preemption: Preemption | None = None,
        work: Work | None = None,
    ) -> Result:
        """Trains the run of this folder, from its last checkpoint on (see `training.loop.fit`).

        evaluate: default `validation`.
        """
        dropout = self.config.train.item_dropout
        return loop.fit(
            self.config,
            self.folder,
            init=self.init(),
            loss=functools.partial(self.model.loss, item_dropout=dropout),
            batches=self.train_batches,
            evaluate=self.validation() if evaluate is None else evaluate,
            item_counts=self.sampling,
            negatives=self.model.negatives,
            work=work,
            mesh=self.mesh,
            preemption=preemption,
            digests=self.digests,
            ancestors=self.ancestors,
            claimed=self.save_catalog,
            texts=self.train_items(),
        )

    def subject(self) -> evaluator.Subject:
        """The best checkpoint of the run."""
        key = jax.random.key(0)
        if self.mesh is None:
            like = jax.eval_shape(self.model.init, key)
        else:
            like = mesh_lib.abstract(self.mesh, lambda: self.model.init(key))
        _, params = checkpoint.load_params(self.folder / CHECKPOINTS, like)
        recent = functools.partial(self.eval_batches, recent_only=True)
        return evaluator.Subject(self.model, params, self.eval_batches, recent, self.mesh)

    def evaluate(self, say: evaluator.Say) -> dict[str, Any]:
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
            session = Session(full_config, other, self.mesh, self.poll)
            if session.digests != self.digests:
                raise ConfigError(f"eval.full_workdir={other}: trained on other data or split")
            full = session.subject()
        return evaluator.evaluate(
            self.config,
            self.subject(),
            counts=self.prepared.counts,
            history=self.history,
            full=full,
            returning=self.returning if self.config.data.dataset == "synthetic" else None,
            say=say,
        )
