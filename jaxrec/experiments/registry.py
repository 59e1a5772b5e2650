"""All experiments by name, in the order in which they run."""

from collections.abc import Callable

from jaxrec.experiments import (
    ablations,
    experts,
    gap,
    measures,
    probe,
    quality,
    staleness,
    state_size,
    stored,
    timed,
    training_length,
)
from jaxrec.experiments.result_table import Experiment
from jaxrec.experiments.runs import Lab
from jaxrec.types import Json

EXPERIMENTS: dict[str, Callable[[Lab], Experiment]] = {
    "gap": gap.gap,
    "cost": timed.cost,
    "length": quality.length,
    "tokens": quality.tokens,
    "segments": quality.segments,
    "placement": quality.placement,
    "staleness": staleness.staleness,
    "forms": stored.encodings,
    "longer": quality.longer,
    "experts": experts.experts,
    "probe": probe.probe,
    "ablations": ablations.ablations,
    state_size.NAME: state_size.sizes,
    training_length.NAME: training_length.steps,
}
# `ablations` has recipes of its own, `bytes` needs a gap, `steps` takes long
ALONE = ("ablations", state_size.NAME, training_length.NAME)
ALL = tuple(name for name in EXPERIMENTS if name not in ALONE)  # what `all` makes

FROM_STATES = ("staleness", "forms", state_size.NAME)  # they ask for the newest events alone

EVERY_TARGET = ("gap",)  # planted returns have rows of their own


def filters_seen(chosen: bool, experiment: Experiment) -> bool:
    """Whether the ranks of an experiment honour `eval.filter_seen`."""
    return chosen and experiment.name not in FROM_STATES  # they rank states directly


def protocol(lab: Lab, experiment: Experiment) -> Json:
    """The conditions under which an experiment's numbers were made."""
    config, settings = lab.config, lab.config.experiments
    run = probe.run_of(config) if experiment.name == "probe" else lab.base
    users = f"{settings.users} at most" if settings.users else "all"
    min_events = 0 if experiment.name == "probe" else settings.min_events
    targets = run.data.holdout
    if experiment.name in FROM_STATES:
        targets = settings.last
    seen = "filtered" if filters_seen(run.eval.filter_seen, experiment) else "not filtered"
    count = measures.count_returns(config) and experiment.name not in EVERY_TARGET
    which = "planted returns among the " if count or experiment.name == "probe" else ""
    facts = {
        "dataset": run.data.dataset + (f" {run.data.variant}" if run.data.variant else ""),
        "split": f"{run.eval.split}, last {run.data.holdout} events of a user, each predicted "
        "from all events before it",
        "targets": f"{which}last {targets} events of a user",
        "ranking": f"full catalog, seen items {seen}, ties count against the model",
        "users": f"{users} of those with {min_events} events and more, the same for "
        "every row; a user's metric is the mean over its targets",
        "training": f"{run.train.steps} steps of {run.train.batch_size}, best of the validations "
        f"every {run.train.eval_every}",
        "model": f"{run.model.backbone}, width {run.model.width}, {run.model.layers} layers, "
        f"{run.model.heads} heads, loss {run.loss.kind}",
        "layout": f"{run.layout.max_segments} x ({run.layout.segment_size} + {run.layout.tokens} "
        f"tokens) + {run.layout.recent}, where rows do not say otherwise",
        "seeds": list(settings.seeds),
        "interval": f"95 %, bootstrap over seeds and users, {settings.bootstrap} samples",
    }
    if experiment.name in ("cost", "experts"):
        for key in ("targets", "ranking", "split"):
            del facts[key]
    return facts
