"""Evaluations of runs: made, kept in the run's folder, printed."""

import json
import pathlib
from typing import NamedTuple

from jaxrec.config import Config
from jaxrec.errors import WorkdirError
from jaxrec.evaluation import evaluator, rank_file, terminal
from jaxrec.evaluation.ranks import Ranks
from jaxrec.runtime import workdir
from jaxrec.session import Session
from jaxrec.types import Json


class Evaluation(NamedTuple):
    """report: the JSON value of results.json. facts, ranks: what `rank_file.save` keeps."""

    report: Json
    facts: Json
    ranks: dict[str, Ranks]


def open_run(config: Config, folder: pathlib.Path) -> Session:
    """The session of a trained run whose model and data `config` describes.

    Raises ConfigError for wrong row names, WorkdirError for a folder that holds no such run.
    """
    if not folder.is_dir():
        raise WorkdirError(f"{folder}: no such run; train it first, or name its folder")
    # wrong row names and folders are refused before the work starts
    evaluator.chosen(config)
    workdir.check(folder, config)
    session = Session(config, folder)
    workdir.check_data(folder, session.digests)
    return session


def evaluate(session: Session, say: evaluator.Say) -> Evaluation:
    """The rows of `eval.mode` of the run's best checkpoint."""
    ranks: dict[str, Ranks] = {}
    report = session.evaluate(say, keep=ranks.update)
    facts = rank_file.facts(session.config, session.digests, session.prepared.num_items)
    return Evaluation(report, facts, ranks)


def write(
    evaluation: Evaluation, folder: pathlib.Path, output: pathlib.Path, verbose: bool = False
) -> None:
    """Keeps the ranks in the run's `folder` and the report in `output`, and prints the table."""
    rank_file.save(folder / rank_file.NAME, evaluation.ranks, evaluation.facts)
    workdir.write_text(output, json.dumps(evaluation.report, indent=2) + "\n")
    print(terminal.format_table(evaluation.report, verbose=verbose, source=str(output)))
