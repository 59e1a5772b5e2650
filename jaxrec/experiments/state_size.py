"""What a byte of a stored state buys: the experiment `bytes`."""

from collections.abc import Sequence

import numpy as np

from jaxrec.errors import ConfigError
from jaxrec.evaluation.ranks import Ranks
from jaxrec.experiments import measures
from jaxrec.experiments.gap import base_of, modes_of
from jaxrec.experiments.quality import price
from jaxrec.experiments.result_table import Cell, Experiment, Line, Values
from jaxrec.experiments.runs import Lab, with_values
from jaxrec.experiments.stored import StoredRanks
from jaxrec.state_store.encodings import ENCODINGS

NAME = "bytes"


def newest(ranks: Ranks, last: int) -> Ranks:
    """Those of every user's newest `last` targets."""
    users, index = np.unique(ranks.user, return_inverse=True)
    end = np.zeros(len(users), np.int64)
    np.maximum.at(end, index, ranks.position)
    kept = ranks.position > end[index] - last
    user, position, item, rank = (column[kept] for column in ranks[:4])
    return Ranks(user, position, item, rank, None)


class _Study:
    """Makes the rows of `bytes` from runs with recent, compressed and full history."""

    def __init__(self, lab: Lab) -> None:
        if lab.base.eval.filter_seen:
            raise ConfigError(
                f"{NAME}: states are ranked without leaving out seen items; set "
                "eval.filter_seen=False"
            )
        self.lab, self.base = lab, base_of(lab)
        self.stored = StoredRanks(lab)
        self.runs = modes_of(self.base)

    def chosen(self, by_seed: Sequence[Ranks]) -> list[Ranks]:
        """Ranks of the targets that count."""
        last = self.lab.config.experiments.last
        return measures.counted(self.lab, [newest(ranks, last) for ranks in by_seed])

    def raw(self, mode: str) -> list[Ranks]:
        """Ranks by seed of a run that reads raw events."""
        return self.chosen(measures.by_seed(self.lab, self.runs[mode]))

    def of_events(self, mode: str) -> Cell:
        """The row of the recent window alone, or of full history."""

        def make() -> Values:
            levels = measures.levels(self.raw(mode), self._samples)
            cost = price(self.runs[mode], mode, self.base)
            kept = {"row_bytes": cost["state_bytes"], "flops_of_full": cost["flops_of_full"]}
            return {"name": mode, "series": mode, **kept, **levels}

        return Cell(mode, make, lambda: self.raw(mode))

    def of_states(self, tokens: int, encoding: str) -> Cell:
        """The row of states with so many tokens per segment, stored in an encoding."""
        config = with_values(self.base, layout__tokens=tokens)
        name = f"{tokens} token{'s' * (tokens > 1)}, {encoding}"

        def ranks() -> list[Ranks]:
            return self.chosen(self.stored.by_seed(config, encoding))

        def make() -> Values:
            row, vectors = self.stored.row_bytes(config, encoding)
            kept = ranks()
            facts: Values = {"name": name, "series": encoding, "tokens": tokens}
            facts |= {"row_bytes": row, "vector_bytes": vectors}
            facts["flops_of_full"] = price(config, "compressed")["flops_of_full"]
            share = measures.closed(kept, self.raw("recent"), self.raw("full"), self._samples)
            return facts | measures.levels(kept, self._samples) | share

        return Cell(name, make, ranks)

    @property
    def _samples(self) -> int:
        return self.lab.config.experiments.bootstrap


def sizes(lab: Lab) -> Experiment:
    """Quality and the share of the gap closed, by tokens and by the encoding of stored states."""
    study = _Study(lab)
    which = "planted returns among the " if measures.count_returns(lab.config) else ""
    return Experiment(
        NAME,
        "What a byte of a state buys",
        "How much of the gap is closed by states of how many bytes?",
        "One compressed run per number of tokens and seed. Its states are compressed, written and "
        "read back in every encoding, and asked for the "
        f"{which}newest {lab.config.experiments.last} events of every user. `recent` and `full` "
        "are models of their own, trained on the recent window alone and on full history.",
        "`closed` is (compressed - recent) / (full - recent), all three on the same draws of seeds "
        "and users. A row of a state has the tokens' vectors, and the ids and times of the recent "
        "window in every encoding alike.",
        [
            study.of_events("recent"),
            *(
                study.of_states(tokens, encoding)
                for tokens in lab.config.experiments.tokens
                for encoding in ENCODINGS
            ),
            study.of_events("full"),
        ],
        [
            _line(f"ndcg@{measures.K}_closed", f"gap closed, NDCG@{measures.K}"),
            _line("mrr_closed", "gap closed, MRR"),
        ],
    )


def _line(column: str, label: str) -> Line:
    return Line(
        "Share of the gap closed against bytes per user",
        x="row_bytes",
        y=column,
        x_label="bytes per user",
        y_label=label,
        log=True,
        zero=True,
    )
