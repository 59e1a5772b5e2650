"""The typed configuration of a run: plain dataclasses, every field with its default.

Descriptions, choices and bounds stand beside each field (`jaxrec.config.option`).
"""

import dataclasses

from jaxrec.config.data_fields import DataConfig, LayoutConfig, PlantedConfig, SyntheticConfig
from jaxrec.config.model_fields import (
    HSTUConfig,
    LlamaConfig,
    ModelConfig,
    SASRecConfig,
    TextsConfig,
)
from jaxrec.config.option import Group, option
from jaxrec.config.training_fields import LossConfig, TrainConfig

__all__ = [
    "Config",
    "DataConfig",
    "EvalConfig",
    "HSTUConfig",
    "LayoutConfig",
    "LlamaConfig",
    "LossConfig",
    "MeshConfig",
    "ModelConfig",
    "PlantedConfig",
    "SASRecConfig",
    "ServingConfig",
    "SyntheticConfig",
    "TextsConfig",
    "TrainConfig",
]


@dataclasses.dataclass
class EvalConfig(Group):
    """What is evaluated, and how it is reported."""

    split: str = option("test", "Events that are ranked.", choices=("test", "validation"))
    mode: str = option(
        "all",
        "Rows of the table, comma-separated: all, compressed, masked, without-tokens, "
        "recent, full, popularity, copy-last, frequency-all, frequency-last-R (R: recent window).",
    )
    batch_size: int = option(32, "Users that are evaluated at once, all devices together.", low=1)
    filter_seen: bool = option(False, "Leave out items that the user had before.")
    ks: tuple[int, ...] = option((1, 5, 10, 50, 200), "Ranks K of recall@K and ndcg@K.")
    buckets: tuple[int, ...] = option(
        (100, 200, 500, 1000), "Increasing edges of the history-length buckets, events."
    )
    bootstrap: int = option(1000, "Resamples of users for the intervals; 0: no intervals.", low=0)
    chunk: int = option(16384, "Catalog items that are scored at once.", low=1)
    full_workdir: str = option(
        "", "Folder of a run with layout.mode=full to compare with; empty: none."
    )
    recent_workdir: str = option(
        "", "Folder of a run with layout.mode=recent to compare with; empty: none."
    )


@dataclasses.dataclass
class MeshConfig(Group):
    """How devices are arranged (docs/scale.md)."""

    data: int = option(0, "Devices along the batch; 0: all that are left.", low=0)
    fsdp: int = option(1, "Devices along large dense parameters.", low=1)
    model: int = option(1, "Devices along the rows of item tables.", low=1)


@dataclasses.dataclass
class ServingConfig(Group):
    """What a new store of user states is made with (docs/serving.md)."""

    encoding: str = option(
        "float32",
        "How the vectors of compressed tokens are stored.",
        choices=("float32", "bfloat16", "int8"),
    )
    keep_seen: int = option(0, "Newest distinct items that are remembered per user.", low=0)
    num_shards: int = option(8, "Files that the users are spread over.", low=1, high=4096)


@dataclasses.dataclass
class Config(Group):
    """A run: data, layout, model, loss, training, evaluation, devices, serving."""

    seed: int = option(
        0, "Seed of initial parameters, data order and dropout.", low=0, high=2**31 - 1
    )
    data: DataConfig = dataclasses.field(default_factory=DataConfig)
    layout: LayoutConfig = dataclasses.field(default_factory=LayoutConfig)
    model: ModelConfig = dataclasses.field(default_factory=ModelConfig)
    loss: LossConfig = dataclasses.field(default_factory=LossConfig)
    train: TrainConfig = dataclasses.field(default_factory=TrainConfig)
    eval: EvalConfig = dataclasses.field(default_factory=EvalConfig)
    mesh: MeshConfig = dataclasses.field(default_factory=MeshConfig)
    serving: ServingConfig = dataclasses.field(default_factory=ServingConfig)
