"""A configuration whose experiments take seconds, and one lab that tests share."""

import dataclasses

import numpy as np

from configs import synthetic
from jaxrec.config import PlantedConfig, SyntheticConfig
from jaxrec.experiments import settings
from jaxrec.experiments.settings import (
    ExperimentsConfig,
    ExperimentsSettings,
    ProbeConfig,
    ProbeData,
)


def config(**experiments):
    made = ExperimentsConfig(**vars(synthetic.get_config()))
    made.data.synthetic = SyntheticConfig(users=24, items=60, events=40, gap=12)
    made.data.holdout, made.data.workers = 2, 0
    made.layout.segment_size, made.layout.tokens, made.layout.max_segments = 6, 2, 2
    made.model.width, made.model.layers, made.model.heads = 8, 2, 2
    made.model.repeat_half_lives = (4.0,)
    made.loss.kind, made.loss.negatives = "sampled_softmax", 8
    made.train.steps, made.train.batch_size, made.train.validation_users = 4, 4, 8
    made.train.eval_every = made.train.checkpoint_every = 4
    made.eval.batch_size = 8
    made.mesh.data = 1  # of the devices that tests have
    probe = ProbeConfig(
        data=ProbeData(users=24, items=60, events=60, interests=6, gap=12, returns=0.9),
        holdout=4,
        segment_size=6,
        max_segments=2,
        tokens=2,
        batch_size=4,
        steps=4,
        edges=(14, 18),
    )
    chosen = ExperimentsSettings(
        seeds=(0, 1),
        users=10,
        min_events=20,
        bootstrap=20,
        lengths=(1, 2),
        tokens=(1, 2),
        segments=(1, 2),
        ages=(0, 1, 8),
        last=2,
        longer=(0.5, 1.0, 2.0),
        steps=(0.5, 1.0),
        components=2,
        returns=False,  # so few targets have none, or one
        probe=probe,
    )
    made.experiments = dataclasses.replace(chosen, **experiments)
    return settings.validate(made)


def planted(folder, *, events=60, **values):
    """The same on returns planted into a table of random events; values: of `data.planted`."""
    rng, users = np.random.default_rng(0), 24
    file = folder / "events.csv"
    rows = zip(np.repeat(range(users), events), rng.integers(0, 40, users * events), strict=True)
    lines = [f"{user},{item},{row}\n" for row, (user, item) in enumerate(rows)]
    file.write_text("user_id,item_id,timestamp\n" + "".join(lines))
    made = config(seeds=(0,), returns=True)
    made.data.dataset, made.data.path = "planted", str(file)
    chosen = {"durable": 0.5, "rate": 0.9, "returns": 1.0, "gap": 12, "spread": 6, "reach": 40}
    made.data.planted = PlantedConfig(**chosen | values)
    return made
