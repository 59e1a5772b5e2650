"""From what a caller of `fit` says to a configuration: a recipe, the columns, keys by name."""

import copy
from collections.abc import Mapping

from jaxrec.api.defaults import table_config
from jaxrec.config import Config, check_key, load_recipe
from jaxrec.errors import ConfigError

# columns of recommendations beside user and item
RESULT_COLUMNS = ("score", "rank", "known")


def resolve(
    config: Config | str | None,
    columns: Mapping[str, str | None],
    overrides: Mapping[str, object],
) -> Config:
    """The configuration of a run on a table, not validated yet, without the place of its events.

    config: a configuration, which is copied, a recipe (`FILE.py[:ARGUMENT]`), or None for
    `defaults.table_config`. columns: `user`, `item`, `time` -> name in the table; None: that of the
    configuration. overrides: dotted key -> value. Raises ConfigError.
    """
    resolved = _copy(config)
    if resolved.data.dataset != "table":
        resolved.data.dataset, resolved.data.variant = "table", ""
    for name, column in columns.items():
        key = f"data.{name}_column"
        if column is None:
            continue
        if key in overrides:
            raise ConfigError(f"{key}: {name}= says it too; give one of them")
        override(resolved, {key: column})
    if "data.path" in overrides or "data.dataset" in overrides:
        key = "data.path" if "data.path" in overrides else "data.dataset"
        raise ConfigError(f"{key}: the first argument of fit says where the events are")
    override(resolved, overrides)
    check_columns(resolved)
    return resolved


def override(config: Config, values: Mapping[str, object]) -> None:
    """Sets dotted keys, in place; lists become tuples. Raises ConfigError for unknown keys."""
    for key, value in values.items():
        check_key(config, key)
        group, _, name = key.rpartition(".")
        node: object = config
        for part in filter(None, group.split(".")):
            node = getattr(node, part)
        setattr(node, name, tuple(value) if isinstance(value, list) else value)


def check_columns(config: Config) -> None:
    """Raises ConfigError where user or item would share a column of recommendations."""
    data = config.data
    names = {"data.user_column": data.user_column, "data.item_column": data.item_column}
    for key, name in names.items():
        if name in RESULT_COLUMNS:
            raise ConfigError(
                f"{key}={name!r}: recommendations have a column of that name "
                f"({', '.join(RESULT_COLUMNS)}). Rename it in the table"
            )
    if len({*names.values(), data.time_column}) < 3:
        raise ConfigError(
            f"data.user_column={data.user_column!r}, data.item_column={data.item_column!r}, "
            f"data.time_column={data.time_column!r}: three columns are needed"
        )


def _copy(config: Config | str | None) -> Config:
    if config is None:
        return table_config()
    found = load_recipe(config) if isinstance(config, str) else config
    if not isinstance(found, Config):
        raise ConfigError(
            f"config: a {type(found).__name__}; a jaxrec Config or a recipe such as "
            "'configs/table.py' is needed"
        )
    return copy.deepcopy(found)
