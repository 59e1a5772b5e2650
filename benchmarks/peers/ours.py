"""One of our recipes as a cell: trained like `train.py` does, timed and ranked like the peers.

    python -m benchmarks.peers.ours --runs=runs/peers --data=ml-100k --name=jaxrec-hstu --seed=0 \
        --seconds=80
    python -m benchmarks.peers.ours ... --name=mine --recipe=configs/mine.py:argument

--seconds sets the recipe's steps to what fits into that time here: a short trial, kept beside the
cells of the row, says how long compilation and a step take. Without it the recipe's own steps are
trained. --set KEY=VALUE changes a key of the recipe. The clock starts before the first step is
compiled; checkpoints count, validations do not.
"""

import argparse
import functools
import json
import pathlib
import shutil
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from benchmarks.peers import exchange, options, ranking, recipes, watch
from benchmarks.peers.exchange import Events, Json, Targets

if TYPE_CHECKING:
    from jaxrec.config import Config
    from jaxrec.session import Session
    from jaxrec.types import Params

TRIAL = 8  # steps with compilation, and without, that tell how long both take
VALIDATIONS = 10


def train(
    config: "Config", place: pathlib.Path, evaluate: Callable[[Any], Callable[[Any], Any]]
) -> Any:
    """The result of a training in a new folder. evaluate: session -> validation."""
    from jaxrec.runtime import mesh as mesh_lib
    from jaxrec.session import Session

    shutil.rmtree(place, ignore_errors=True)  # of a training that was cut off: its clock is lost
    place.mkdir(parents=True)
    mesh = mesh_lib.make_mesh(config.mesh)
    session = Session(config, place, mesh)
    result = session.fit(evaluate=evaluate(session))
    if result.stopped == "preempted":
        raise SystemExit("stopped by SIGTERM; the same command starts this cell again")
    return result


class Validation:
    """As `Session.validation`, on the peers' users, with a point of the curve each time."""

    def __init__(self, events: Events, now: Callable[[], float]):
        self.events, self.now = events, now
        self.curve: list[dict[str, float]] = []

    def __call__(self, session: "Session") -> Callable[[Any], dict[str, float]]:
        from jaxrec.evaluation import evaluator
        from jaxrec.evaluation.ranks import model_ranks

        config, model = session.config, session.model
        if session.prepared.digest != self.events.digest:
            raise SystemExit("the recipe prepares other data than events.npz holds; export again")
        predict = evaluator.predictor("masked", model, session.mesh)
        history_items = evaluator.history_items(model, session.mesh)
        begin = self.now()

        def evaluate(params: "Params") -> dict[str, float]:
            nonlocal begin
            seconds = self.now() - begin
            ranks = model_ranks(
                predict,
                params,
                model.item_index(params, session.mesh),
                session.eval_batches(self.events.validated, "validation"),
                chunk=config.eval.chunk,
                history_items=history_items,
                lists=False,
            )
            metrics = ranking.quality(ranks.rank, ranks.user)
            step = min((len(self.curve) + 1) * config.train.eval_every, config.train.steps)
            self.curve.append({"step": step, "seconds": seconds, **metrics})
            begin = self.now() - seconds  # validation is no training
            return metrics

        return evaluate


def fit_into(config: "Config", seconds: float, row: pathlib.Path, args: argparse.Namespace) -> None:
    """Sets the steps of `config` to what fits into `seconds`, warm-up and validations with them."""
    file = row / "trial.json"
    if not file.is_file():
        trial = recipes.load(args.recipe)
        prepare(trial, args)
        trial.train.steps = trial.train.checkpoint_every = 2 * TRIAL
        trial.train.eval_every = TRIAL
        moments: list[float] = []
        now = watch.seconds_of(args.clock, args.threads)

        def note(session: "Session") -> Callable[[Any], dict[str, float]]:
            def evaluate(params: "Params") -> dict[str, float]:
                moments.append(now())
                return {trial.train.metric: 0.0}

            moments.append(now())
            return evaluate

        train(trial, row / "trial", note)
        begin, middle, end = moments
        step = (end - middle) / TRIAL
        exchange.write_json(file, {"step": step, "first": end - begin - 2 * TRIAL * step})
        shutil.rmtree(row / "trial")
    measured = json.loads(file.read_text())
    steps = int((seconds - measured["first"]) / measured["step"])
    if steps < VALIDATIONS:
        raise SystemExit(f"--seconds={seconds:g}: {steps} steps of {measured} fit into it")
    config.train.steps = steps
    config.train.warmup = min(config.train.warmup, steps // 10)
    config.train.eval_every = -(-steps // VALIDATIONS)
    config.train.checkpoint_every = steps


def prepare(config: "Config", args: argparse.Namespace) -> None:
    """What the command line says about a recipe."""
    from jaxrec.experiments import settings

    config.seed = args.seed
    config.data.cache_dir = str(args.runs / "data")
    for change in args.set:
        settings.override(config, f"--config.{change}")


def ranks_of(session: "Session", targets: Targets) -> tuple[Json, Json]:
    """(ranks with seen items filtered and not, cost of a request) of the best checkpoint."""
    import numpy as np

    from jaxrec.evaluation import evaluator, report
    from jaxrec.evaluation.ranks import model_ranks

    trained = session.trained_model()
    name = session.config.layout.mode
    rank = functools.partial(
        model_ranks,
        evaluator.predictor(name, trained.model),
        trained.params,
        trained.model.item_index(trained.params),
        history_items=evaluator.history_items(trained.model),
        chunk=session.config.eval.chunk,
        lists=False,
    )
    by_kind = {}
    for kind, history in zip(ranking.KINDS, (None, session.history), strict=True):
        ranks = rank(batches=session.eval_batches(), history=history)
        order = np.lexsort((ranks.position, ranks.user))
        if not np.array_equal(ranks.item[order], targets.item):
            raise SystemExit("our targets are not those of the exported events: export again")
        by_kind[kind] = ranks.rank[order].astype(np.int64)
    cost = evaluator.row_cost(name, trained.model)
    return by_kind, {
        "request_flops": cost.flops,
        "full_history_flops": report.full_history(session.config).flops,
        "state_bytes": cost.state_bytes,
    }


def run(args: argparse.Namespace, folder: pathlib.Path) -> None:
    import jax

    from jaxrec.runtime import environment
    from jaxrec.session import Session

    events = exchange.load_events(args.runs / args.data / exchange.EVENTS)
    targets = exchange.targets(events, "test")
    config = recipes.load(args.recipe)
    prepare(config, args)
    if args.seconds:
        fit_into(config, args.seconds, folder.parent, args)
    validation = Validation(events, watch.seconds_of(args.clock, args.threads))
    begin, processor = time.monotonic(), time.process_time()
    result = train(config, folder / "run", validation)
    spent = {"wall_seconds": time.monotonic() - begin}
    spent["processor_seconds"] = time.process_time() - processor
    ranks, cost = ranks_of(Session(config, folder / "run"), targets)
    described = environment.describe()
    versions = {"jax": jax.__version__, "numpy": described["packages"]["numpy"]}
    settings = {"steps": config.train.steps, "batch_size": config.train.batch_size}
    length = config.layout.recent if config.layout.mode == "recent" else config.layout.history
    facts = options.facts(args, events.digest, length, settings, versions)
    facts |= {
        "recipe": args.recipe,
        "changes": args.set,
        "curve": validation.curve,
        "best": max(validation.curve, key=lambda point: point[watch.METRIC]),
        "stopped": result.stopped,
        "budget_seconds": args.seconds or None,
        "train_seconds": validation.curve[-1]["seconds"],
        "git": described["git"],
        "test": {kind: ranking.quality(r, targets.user) for kind, r in ranks.items()},
    }
    exchange.save_cell(folder, targets, ranks, facts | spent | cost)
    if not args.keep:
        shutil.rmtree(folder / "run")
    print(f"{args.data} {args.name} seed {args.seed}: {facts['test']}")


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.peers.ours", description=__doc__.split("\n\n")[0]
    )
    options.add(parser)
    recipes.add_sources(parser)
    parser.add_argument("--seconds", type=float, default=0, help="training seconds; 0: by steps")
    parser.add_argument("--recipe", default="", help="configs/FILE.py:ARGUMENT")
    parser.add_argument("--keep", action="store_true", help="keep the run's folder")
    args = parser.parse_args()
    args.threads = options.use_cores(args.cores)
    recipes.locate(args)
    args.recipe = args.recipe or recipes.OURS[args.data][args.name]
    run(args, exchange.cell_folder(args.runs, args.data, args.name, args.seed))


if __name__ == "__main__":
    main()
