"""A trained run, with frames in and out."""

import copy
import functools
import json
import pathlib

import numpy as np

from jaxrec.api import answers, frames, settings
from jaxrec.api.evaluation import Evaluation
from jaxrec.api.frames import Frame
from jaxrec.api.ranker import Ranker
from jaxrec.api.states import States, open_or_build
from jaxrec.config import Config
from jaxrec.errors import ConfigError, JaxrecError
from jaxrec.evaluation import evaluator, rank_file
from jaxrec.evaluation.ranks import Ranks
from jaxrec.runtime import workdir
from jaxrec.runtime.progress import say
from jaxrec.serving.raw_inputs import ItemLists
from jaxrec.serving.service import Recommender
from jaxrec.session import Session
from jaxrec.state_store.places import Url

RESULTS = "results.json"


class FittedModel:
    """The best checkpoint of a run: recommends, is evaluated, keeps user states.

    Frames that it returns are of the library that the events came in, of the users' library where
    users are a frame or a series.
    """

    def __init__(self, session: Session, library: str = "polars") -> None:
        """session: of a trained run. library: of the frames that come back."""
        settings.check_columns(session.config)
        self.session, self.library = session, library

    @property
    def workdir(self) -> pathlib.Path:
        """The folder of the run."""
        return self.session.folder

    @property
    def config(self) -> Config:
        """The settings of the run."""
        return self.session.config

    @functools.cached_property
    def recommender(self) -> Recommender:
        """What serves states of the model. Raises ConfigError where it has none."""
        mode = self.config.layout.mode
        if mode != "compressed":
            raise ConfigError(
                f"{self.workdir}: a run with layout.mode={mode!r} keeps no user states; "
                "fit one with layout.mode='compressed', or use recommend, which needs none"
            )
        return Recommender.load(self.workdir)

    @functools.cached_property
    def ranker(self) -> Ranker:
        """What `recommend` ranks by; reads the parameters of the best checkpoint."""
        return Ranker(self.session)

    def recommend(
        self,
        users: object = None,
        k: int = 10,
        *,
        exclude_seen: bool | None = None,
        exclude: ItemLists | None = None,
        candidates: ItemLists | None = None,
        now: object = None,
    ) -> Frame:
        """The k best next items of each user, from the histories of the training data.

        A frame with columns named as those of the events: user, item, then score (float32; higher
        is better), rank (1 is best) and known. Users keep their order, and are there as often as
        they were given. Users that are not in the training data get the most popular items: known
        is False there, and their scores are training counts. A list is shorter than k where fewer
        items are left.

        users: ids in a list, an array, a series or a frame with the user column; None: all users
            of the training data.
        exclude_seen: leave out items that the user had before (default: `eval.filter_seen`).
        exclude: item ids to leave out, one list for all users or a list per user.
        candidates: item ids to choose from, one list or a list per user (default: all).
        now: time of the request, one or one per user, for models with `model.request_time`
            (default: the user's last event).

        What is read of a history is what evaluation reads: the newest events that the layout
        covers. Raises DataError naming the argument.
        """
        prepared, catalog, data = self.session.prepared, self.session.catalog, self.config.data
        if users is None:
            users = prepared.users
        who = answers.asked(users, data, catalog, self.library)
        request = answers.request(
            k,
            len(who.users),
            catalog,
            now=now,
            zone=data.time_zone,
            exclude=exclude,
            candidates=candidates,
        )
        dense = self.ranker.users.encode(who.users) - 1
        if exclude_seen is None:
            exclude_seen = self.config.eval.filter_seen
        items, scores = self.ranker.answer(dense, request, exclude_seen=exclude_seen)
        return answers.frame(
            who, dense >= 0, catalog.raw(items), scores, data=data, catalog=catalog
        )

    def evaluate(self, **overrides: object) -> Evaluation:
        """Ranks the held-out events over the whole catalog, as `eval.py`; writes results.json.

        overrides: keys of `eval.*`, such as `**{"eval.full_workdir": "runs/full"}`. Raises
        ConfigError.
        """
        wrong = next((key for key in overrides if not key.startswith("eval.")), None)
        if wrong is not None:
            raise ConfigError(f"{wrong}: only eval.* may differ from the training of the run")
        session = self.session
        if overrides:
            config = copy.deepcopy(self.config)
            settings.override(config, overrides)
            session = Session(config, self.workdir, session.mesh)
        evaluator.chosen(session.config)
        ranks: dict[str, Ranks] = {}
        report = session.evaluate(say, keep=ranks.update)
        facts = rank_file.facts(session.config, session.digests, session.prepared.num_items)
        rank_file.save(self.workdir / rank_file.NAME, ranks, facts)
        workdir.write_text(self.workdir / RESULTS, json.dumps(report, indent=2) + "\n")
        return Evaluation(report, self.library)

    def states(
        self, path: Url, *, encoding: str | None = None, keep_seen: int | None = None
    ) -> States:
        """The store of user states at `path`; one that is not there is made of the training data.

        encoding: of its vectors, float32, bfloat16 or int8 (default: `serving.encoding`).
        keep_seen: newest distinct items that are remembered per user (default:
        `serving.keep_seen`, or where seen items are left out as many as the layout covers). Raises
        ConfigError for a run without states, StoreError for a store of another model.
        """
        recommender = self.recommender
        try:
            store = open_or_build(
                recommender, self.session, path, encoding=encoding, keep_seen=keep_seen
            )
        except JaxrecError:
            raise
        except ValueError as error:
            raise ConfigError(f"states: {error}") from error
        return States(recommender, store, self.library)

    def similar_items(self, items: object, k: int = 10) -> Frame:
        """The k items whose vectors are closest to each item's, by cosine.

        A frame with the item column, `similar`, score (cosine, -1 to 1) and rank (1 is best), in
        the order of `items`, which are a list, an array or a series. Raises DataError for an item
        that the model does not know.
        """
        answers.check_k(k)
        catalog, name = self.session.catalog, self.config.data.item_column
        asked = answers.known_items(items, catalog)
        dense, scores = self.ranker.neighbours(asked, min(k, catalog.num_items - 1))
        count, width = dense.shape
        ids = catalog.vocabulary.ids
        columns = {
            name: np.repeat(ids[asked - 1], width),
            "similar": ids[dense.ravel() - 1],
            "score": scores.ravel(),
            "rank": np.tile(np.arange(1, width + 1), count),
        }
        return frames.make(columns, self.library)

    def __repr__(self) -> str:
        prepared, layout = self.session.prepared, self.config.layout
        return (
            f"FittedModel({str(self.workdir)!r}: {self.config.model.backbone}, {layout.mode}, "
            f"{prepared.num_users:,} users, {prepared.num_items:,} items)"
        )
