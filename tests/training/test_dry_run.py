"""The plan of a step before it runs, and the rates and the trace of one that does."""

import json

import jax
import pytest

from jaxrec.config import LossConfig, ModelConfig, validate
from jaxrec.errors import ConfigError
from jaxrec.layout import SegmentLayout
from jaxrec.model import cost
from jaxrec.runtime import chips
from jaxrec.runtime import mesh as mesh_lib
from jaxrec.training.dry_run import dry_run
from jaxrec.training.task import Task
from jaxrec.training.window import ExampleCost, StepCost
from tests.training import standin


def test_memory_work_and_traffic_of_the_step():
    config = standin.make_config()
    config.mesh.data, config.mesh.model = 4, 2
    mesh = mesh_lib.make_mesh(config.mesh)
    report, lines = dry_run(
        config,
        Task(standin.init, standin.loss, sampling=standin.COUNTS),
        batch=standin.batch_at(0),
        mesh=mesh,
        flops=1000.0,
    )
    table = report["parameters"]["item/embedding"]
    assert table == {"shape": [32, 8], "per_device": [16, 8]}
    assert report["layout_flops"] == 1000.0 * 8 / 8
    # parameters, two moments and an average of the table, half of it on a device
    assert report["memory"]["arguments"] > 4 * 16 * 8 * 4
    assert report["collectives"]["all-reduce"]["bytes"] > 0
    text = "\n".join(lines)
    assert "mesh: data 4 x fsdp 1 x model 2" in text
    assert "item/embedding: [32, 8], [16, 8] on each device" in text


def test_rates_and_profile(tmp_path):
    config = standin.make_config(steps=4, log_every=2, profile_steps="1:3")
    step_cost = StepCost(lambda slots, segments: ExampleCost(slots + 1, 50.0), peak=1000.0)
    standin.fit(tmp_path, config, step_cost=step_cost)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    row = next(line for line in lines if "train/loss" in line)
    assert row["tokens_per_s"] == pytest.approx(7 * row["examples_per_s"])
    assert row["positions_per_event"] == pytest.approx(7 / standin.SLOTS)
    assert row["mfu"] == pytest.approx(50 * row["examples_per_s"] / 1000)
    assert list((tmp_path / "profile").rglob("*.xplane.pb"))


@pytest.mark.parametrize("value", ["5", "5:5", "6:5", "a:b", ":3"])
def test_impossible_profile_steps_are_refused(value):
    config = standin.make_config(profile_steps=value)
    with pytest.raises(ConfigError, match=r"train.profile_steps=.*allowed is A:B"):
        validate(config)


def test_flops_of_the_layout_are_about_those_of_the_compiler():
    """Training on one device, layers unrolled, attention dense: XLA counts what is computed."""
    from jaxrec.config import Config
    from jaxrec.model import recommender
    from jaxrec.training import step as step_lib
    from tests.training.test_row_updates import batch_at

    layout = SegmentLayout.full(64)
    model_config = ModelConfig(width=64, layers=2, heads=2, dropout=0.0, embed_dropout=0.0)
    model_config.hstu.position_bias = model_config.hstu.time_bias = False
    loss = LossConfig(kind="sampled_softmax", negatives=64, sampling="uniform", token_weight=0.0)
    model = recommender.build(model_config, loss, layout, 500)
    config = Config()
    config.mesh.data = 1
    parts = step_lib.assemble(config, Task(model.init, model.loss), mesh_lib.make_mesh(config.mesh))
    batch = batch_at(0, layout)
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), batch)
    counted = parts.step.lower(parts.like, shapes, None).compile().cost_analysis()["flops"]
    flops = len(batch.user) * cost.training_flops(model_config, loss, layout, 500)
    # visible pairs are half of a dense causal block; the rest is element-wise work
    assert 0.9 < counted / flops < 1.8


def test_peaks():
    class Device:
        def __init__(self, kind):
            self.device_kind = kind

    assert chips.peak_flops(Device("TPU v5 lite")) == 197e12
    assert chips.peak_flops(Device("NVIDIA H100 80GB HBM3")) == 989e12
    assert chips.peak_flops(Device("NVIDIA H100 PCIe")) == 756e12
    assert chips.peak_flops(Device("cpu")) is None
