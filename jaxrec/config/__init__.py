"""The typed configuration of a run: plain dataclasses, checked by `validate`.

Files in `configs/` return a `Config`; `--config.train.steps=100` overrides a field. Every
error names the key, its value and what is allowed.
"""

from jaxrec.config.checks import validate
from jaxrec.config.fields import (
    Config,
    DataConfig,
    EvalConfig,
    HSTUConfig,
    LayoutConfig,
    LlamaConfig,
    LossConfig,
    MeshConfig,
    ModelConfig,
    PlantedConfig,
    SASRecConfig,
    ServingConfig,
    SyntheticConfig,
    TextsConfig,
    TrainConfig,
)
from jaxrec.config.recipe import asks_for_advice, load_recipe, recipe_argument
from jaxrec.config.serialization import build, digest, from_json, to_json
from jaxrec.config.value_checks import (
    BOUNDS,
    CHOICES,
    check_elements,
    check_key,
    check_types,
    check_values,
    lookup,
)
from jaxrec.errors import ConfigError

__all__ = [
    "BOUNDS",
    "CHOICES",
    "Config",
    "ConfigError",
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
    "asks_for_advice",
    "build",
    "check_elements",
    "check_key",
    "check_types",
    "check_values",
    "digest",
    "from_json",
    "load_recipe",
    "lookup",
    "recipe_argument",
    "to_json",
    "validate",
]
