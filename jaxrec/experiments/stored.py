"""What a stored state costs and holds: `forms`, and ranks from stored states for others."""

from collections.abc import Sequence

import jax
import numpy as np

from jaxrec.benchmark import state_encodings
from jaxrec.config import Config
from jaxrec.evaluation.ranks import Ranks
from jaxrec.experiments import measures
from jaxrec.experiments.measures import QUALITY, K, columns
from jaxrec.experiments.result_table import Cell, Experiment, Line, Values
from jaxrec.experiments.runs import Lab, name_of, with_values
from jaxrec.serving import Recommender, state_rows
from jaxrec.serving.state_rows import Events
from jaxrec.session import Session
from jaxrec.state_store.encodings import ENCODINGS

STATES = {"kv": "keys and values", "embedding": "token outputs"}


def histories_of(session: Session, users: np.ndarray) -> list[Events]:
    """Whole histories of users, oldest event first."""
    records = session.prepared.source.__getitems__(users.tolist())
    return [Events(record.items, record.times) for record in records]


def targets(users: np.ndarray, histories: Sequence[Events], last: int) -> dict[str, np.ndarray]:
    """The newest `last` events of every user, user after user: columns of `Ranks`."""
    position = [len(items) - last + np.arange(last) for items, _ in histories]
    item = [items[-last:] for items, _ in histories]
    return {
        "user": np.repeat(users, last),
        "position": np.concatenate(position),
        "item": np.concatenate(item),
    }


def as_ranks(arrays: dict[str, np.ndarray], rank: np.ndarray) -> Ranks:
    """`Ranks` of the targets in `arrays`."""
    return Ranks(arrays["user"], arrays["position"], arrays["item"], rank, None)


def share_that_differs(ranks: Sequence[Ranks], others: Sequence[Ranks]) -> float:
    """Share of targets, over all seeds, whose rank is another one."""
    differ = sum(int((a.rank != b.rank).sum()) for a, b in zip(ranks, others, strict=True))
    return differ / sum(len(seed.rank) for seed in ranks)


class StoredRanks:
    """Ranks from states that were stored in an encoding and read back.

    Targets are the newest `experiments.last` events of the evaluated users, each asked of a state
    that has all events before it.
    """

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self._loaded: dict[str, Recommender] = {}

    def recommender(self, config: Config) -> Recommender:
        """The recommender of a run, which is trained first where it is missing."""
        name = name_of(config)
        if name not in self._loaded:
            self.lab.session(config)
            folder = self.lab.place(config)
            self._loaded[name] = Recommender.load(folder, devices=jax.local_devices()[:1])
        return self._loaded[name]

    def evaluated(self, config: Config) -> dict[str, np.ndarray]:
        """Targets, and ranks by encoding, of a run."""
        last = self.lab.config.experiments.last

        def make() -> dict[str, np.ndarray]:
            session = self.lab.session(config)
            users = self.lab.users(session.prepared)
            histories = histories_of(session, users)
            requests = [
                Events(items[: len(items) - last + 1 + n], times[: len(items) - last + 1 + n])
                for items, times in histories
                for n in range(last)
            ]
            ranks = state_encodings.ranks(self.recommender(config), requests)
            return ranks | targets(users, histories, last)

        return self.lab.kept(config, f"forms {last}", make)

    def by_seed(self, config: Config, encoding: str) -> list[Ranks]:
        """Ranks by seed of the run of a setting; config: of any seed."""
        runs = (self.evaluated(with_values(config, seed=seed)) for seed in self.lab.seeds)
        return [as_ranks(arrays, arrays[encoding]) for arrays in runs]

    def row_bytes(self, config: Config, encoding: str) -> tuple[int, int]:
        """Bytes of a user's row in a store: (all of them, those of the tokens' vectors)."""
        model = self.recommender(with_values(config, seed=self.lab.seeds[0])).model
        spec = state_rows.row_spec(model, encoding, 0)
        vectors = [field for field in spec.fields if field.name in state_rows.TOKEN_COLUMNS]
        return spec.row_bytes, sum(field.nbytes for field in vectors)


class _Study:
    """Makes the rows of `forms` from a run per kind of state and seed."""

    def __init__(self, lab: Lab) -> None:
        self.stored = StoredRanks(lab)
        self.samples = lab.config.experiments.bootstrap
        self.runs = {state: with_values(lab.base, model__state=state) for state in STATES}

    def ranks(self, state: str, encoding: str) -> list[Ranks]:
        """Ranks by seed from states that were stored in an encoding."""
        return self.stored.by_seed(self.runs[state], encoding)

    def cell(self, state: str, encoding: str) -> Cell:
        """Bytes and quality of one encoding, relative to keys and values in float32."""
        name = f"{STATES[state]}, {encoding}"

        def make() -> Values:
            ranks, reference = self.ranks(state, encoding), self.ranks("kv", ENCODINGS[0])
            row, vectors = self.stored.row_bytes(self.runs[state], encoding)
            lab = self.stored.lab
            counted = measures.counted(lab, ranks), measures.counted(lab, reference)
            return {
                "name": name,
                "series": STATES[state],
                "form": encoding,
                "row_bytes": row,
                "vector_bytes": vectors,
                **columns(counted[0], self.samples, counted[1], "float32"),
                "ranks_that_differ": share_that_differs(ranks, self.ranks(state, ENCODINGS[0])),
            }

        return Cell(name, make)


def encodings(lab: Lab) -> Experiment:
    """Quality against bytes per user for every encoding of stored states."""
    study = _Study(lab)
    return Experiment(
        "forms",
        "Forms of stored states",
        "How small may a stored state be before recommendations get worse?",
        f"States are compressed, written and read back in each form, and asked for the newest "
        f"{lab.config.experiments.last} events of every user. `token outputs` is a model of its "
        "own, trained with model.state=embedding: it stores one vector per token and makes every "
        "layer's keys and values from it.",
        "`of float32` compares with keys and values in float32; `ranks that differ` is the share "
        "of targets whose rank is not that of the same model's float32 states. A row also holds "
        "the recent window and the items that repeat-aware scores need, in every form alike.",
        [study.cell(state, encoding) for state in STATES for encoding in ENCODINGS],
        [
            Line(
                "Quality against bytes per user",
                x="row_bytes",
                y=QUALITY,
                x_label="bytes per user",
                y_label=f"Recall@{K}",
                log=True,
            )
        ],
    )
