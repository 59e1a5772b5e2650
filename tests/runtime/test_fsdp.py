"""Weights split over `mesh.fsdp` travel to the users, not the users to the weights."""

import jax
import numpy as np
import pytest

from jaxrec.config import LossConfig, MeshConfig, ModelConfig
from jaxrec.model import recommender
from jaxrec.runtime import leaves, plan
from jaxrec.runtime import mesh as mesh_lib
from jaxrec.training import step as step_lib
from jaxrec.training.task import Task
from tests.training import standin
from tests.training.test_row_updates import ITEMS, LAYOUT, USERS, batch_at

WIDTH = 128


def two_steps(backbone, fsdp):
    """(losses and gradient norms, parameters, collectives) of two training steps."""
    config = standin.make_config(ema=0.0, weight_decay=0.01)
    config.mesh = MeshConfig(fsdp=fsdp)
    config.model = ModelConfig(
        backbone=backbone, width=WIDTH, layers=2, heads=2, dropout=0.0, embed_dropout=0.0
    )
    config.loss = LossConfig(kind="sampled_softmax", negatives=9, sampling="uniform")
    model = recommender.build(config.model, config.loss, LAYOUT, ITEMS)
    mesh = mesh_lib.make_mesh(config.mesh)
    found = []
    with jax.set_mesh(mesh):
        parts = step_lib.assemble(config, Task(model.init, model.loss), mesh)
        state = mesh_lib.create(parts.new, parts.like)
        step = parts.step.lower(state, mesh_lib.put_batch(mesh, batch_at(0)), None).compile()
        for number in range(2):
            state, metrics = step(state, mesh_lib.put_batch(mesh, batch_at(number)), None)
            found.append([metrics.scalars["loss"], metrics.scalars["grad_norm"]])
    return np.asarray(found), jax.device_get(state.params), plan.collectives(step.as_text())


@pytest.mark.parametrize("backbone", ["llama", pytest.param("hstu", marks=pytest.mark.slow)])
def test_activations_stay_where_their_users_are(backbone):
    alone, whole, _ = two_steps(backbone, 1)
    split, parts, collectives = two_steps(backbone, 4)
    np.testing.assert_allclose(split, alone, rtol=1e-4)
    for name, leaf in leaves.flatten(whole).items():
        np.testing.assert_allclose(leaves.flatten(parts)[name], leaf, atol=2e-4, err_msg=name)
    gathered = 0
    for one, _ in collectives:
        for shape in one.shapes:
            # [users, positions, ...] of the batch or of a part of it that is not one device's
            activation = len(shape) >= 3 and LAYOUT.length in shape[:-1] and shape[-1] >= WIDTH // 4
            assert not activation, one
        if one.kind == "all-gather":
            gathered += any(
                shape[-2:] in ((WIDTH, WIDTH), (WIDTH, 4 * WIDTH)) for shape in one.shapes
            )
    assert gathered
    assert USERS == 8
