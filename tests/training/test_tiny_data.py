"""HSTU on 100 users: the loss falls, with the package's own defaults."""

import jax
import numpy as np
import pytest

from jaxrec.config import Config, MeshConfig, validate
from jaxrec.data import windows
from jaxrec.layout import SegmentLayout
from jaxrec.model import recommender
from jaxrec.runtime import mesh as mesh_lib
from jaxrec.training import step as step_lib
from jaxrec.training.task import Task

USERS, ITEMS, EVENTS = 100, 40, 19


def make_config(mode):
    config = Config()
    config.layout.mode = mode
    config.layout.segment_size, config.layout.max_segments, config.layout.tokens = 5, 3, 2
    config.model.width, config.model.layers, config.model.heads = 32, 2, 2
    config.train.batch_size, config.train.steps, config.train.warmup = USERS, 150, 10
    config.train.learning_rate = 1e-2
    return validate(config)


def make_batch(config):
    """Whole histories: a user walks around the catalog by a stride of its own."""
    rng = np.random.default_rng(0)
    walk = rng.integers(0, ITEMS, (USERS, 1)) + rng.integers(1, 5, (USERS, 1)) * np.arange(EVENTS)
    items = (walk % ITEMS + 1).astype(np.int32)
    times = np.cumsum(rng.integers(1, 10**5, items.shape), axis=1).astype(np.int32)
    user, ends = np.arange(USERS), np.full(USERS, EVENTS)
    chance = rng.random((USERS, 5))
    cut = windows.train_cuts(user, ends, config.layout, chance, vary_recent=False)
    layout = SegmentLayout.from_config(config.layout)
    return windows.lay_out(cut, layout, items.ravel(), times.ravel(), base=EVENTS * user)


@pytest.mark.parametrize("mode", [pytest.param("compressed", marks=pytest.mark.slow), "full"])
def test_hstu_learns_from_100_users(mode):
    """The loss without dropout falls to a fifth and below in 150 steps."""
    config = make_config(mode)
    layout = SegmentLayout.from_config(config.layout)
    model = recommender.build(config.model, config.loss, layout, ITEMS)
    mesh = mesh_lib.make_mesh(MeshConfig(), jax.devices()[:1])
    run = step_lib.assemble(config, Task(model.init, model.loss), mesh)
    batch = make_batch(config)

    @jax.jit
    def mean(params, batch):
        total, weight, _ = model.loss(params, batch)
        return total / weight

    state = run.new()
    before = float(mean(state.params, batch))
    for _ in range(config.train.steps):
        state, _ = run.step(state, batch, np.ones(ITEMS + 1, np.float32))
    after = float(mean(state.params, batch))
    assert before == pytest.approx(np.log(ITEMS), rel=0.05)
    assert after < before / 5
