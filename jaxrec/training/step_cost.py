"""What a training step costs, for the rates that are logged."""

import functools

from jax.sharding import Mesh

from jaxrec.config import Config
from jaxrec.model import cost
from jaxrec.model.recommender import Model
from jaxrec.runtime import chips
from jaxrec.training.window import ExampleCost, StepCost


def cost_of_a_step(config: Config, model: Model, mesh: Mesh) -> StepCost:
    """Positions and FLOPs of an example of any length, and the peak of the mesh's devices."""

    @functools.cache
    def example(slots: int, segments: int) -> ExampleCost:
        layout = model.layout.shortened(slots, segments)
        flops = cost.training_flops(config.model, config.loss, layout, model.num_items)
        return ExampleCost(layout.length, flops)

    peak = chips.peak_flops(mesh.devices.flat[0])
    return StepCost(example, None if peak is None else peak * mesh.size)
