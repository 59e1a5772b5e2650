"""All experiments by name, in the order in which they run."""

from collections.abc import Callable
from typing import Any

from jaxrec.experiments import ablations, experts, probe, quality, stored
from jaxrec.experiments.runs import Lab
from jaxrec.experiments.table import Experiment

EXPERIMENTS: dict[str, Callable[[Lab], Experiment]] = {
    "length": quality.length,
    "tokens": quality.tokens,
    "segments": quality.segments,
    "placement": quality.placement,
    "staleness": stored.staleness,
    "forms": stored.forms,
    "longer": quality.longer,
    "experts": experts.experts,
    "probe": probe.probe,
    "ablations": ablations.ablations,
}
# `all` and its page; ablations have a recipe, and a configuration, of their own
ALL = tuple(name for name in EXPERIMENTS if name != "ablations")


def protocol(lab: Lab, experiment: Experiment) -> dict[str, Any]:
    """What every figure of an experiment needs beside it."""
    config, settings = lab.config, lab.config.experiments
    run = probe.run_of(config) if experiment.name == "probe" else lab.base
    users = f"{settings.users} at most" if settings.users else "all"
    least = 0 if experiment.name == "probe" else settings.min_events
    asked = run.data.holdout
    if experiment.name in ("staleness", "forms"):
        asked = settings.last
    found = {
        "dataset": run.data.dataset + (f" {run.data.variant}" if run.data.variant else ""),
        "split": f"{run.eval.split}, last {run.data.holdout} events of a user, each predicted "
        "from all events before it",
        "targets": f"last {asked} events of a user",
        "ranking": "full catalog, seen items not filtered, ties count against the model",
        "users": f"{users} of those with {least} events and more, the same for "
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
    if experiment.name == "experts":
        for key in ("targets", "ranking", "split"):
            del found[key]
    return found
