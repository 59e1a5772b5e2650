"""From a description of data to a recipe for it: a value and a reason for each key that matters.

    statistics = description.describe(prepared)
    advice = advise(statistics)
    print(advice.table())
    config = advice.config(base)          # base: the data.* keys
    for_data(prepared, base, given)       # the same in one call; keys that are given stay

The rules are `jaxrec.data.advice_rules`. They are where to begin, not a promise: the recipes that
they follow were measured on few data sets. `jaxrec tune` searches from there.
"""

import copy
import pathlib
from collections.abc import Collection, Mapping
from typing import NamedTuple

from jaxrec.config import Config, ConfigError, check_key, lookup, validate
from jaxrec.data import advice_rules, description
from jaxrec.data.advice_facts import Choice, Facts
from jaxrec.data.advice_rules import KEYS
from jaxrec.data.prepared import Prepared
from jaxrec.runtime import recipe_text
from jaxrec.types import Json

__all__ = ["KEYS", "Advice", "Choice", "advise", "for_data", "put", "values"]


class Advice(NamedTuple):
    """A recipe for a data set.

    choices: values with reasons, in an order in which each fits those before it. notes: lines on
    what no setting mends.
    """

    choices: tuple[Choice, ...]
    notes: tuple[str, ...]

    def config(self, base: Config | None = None, given: Collection[str] = ()) -> Config:
        """A validated configuration: `base` (default: the defaults) with the choices.

        given: keys that keep the value of `base`. Raises ConfigError where `base` is invalid.
        """
        return self.applied(Config() if base is None else base, given)[0]

    def applied(
        self, base: Config, given: Collection[str] = ()
    ) -> tuple[Config, tuple[Choice, ...], tuple[str, ...]]:
        """(configuration, choices that it follows, a line for each that `given` values rule out).

        Raises ConfigError where `base` is invalid or a key of `given` does not exist.
        """
        for key in given:
            check_key(base, key)
        config = validate(copy.deepcopy(base))
        taken: list[Choice] = []
        refused: list[str] = []
        for choice in self.choices:
            if choice.key in given:
                continue
            before = lookup(config, choice.key)
            put(config, choice.key, choice.value)
            try:
                validate(config)
            except ConfigError as error:
                put(config, choice.key, before)
                refused.append(f"{choice.key} stays {before!r}: {error}")
            else:
                taken.append(choice)
        return config, tuple(taken), tuple(refused)

    def table(self) -> str:
        """A line for each choice, with its reason, and one for each note."""
        rows = [(f"{c.key}={c.value!r}", c.reason) for c in self.choices]
        wide = max(len(setting) for setting, _ in rows)
        lines = [f"{setting:<{wide}}  # {reason}" for setting, reason in rows]
        return "\n".join([*lines, *(f"note: {line}" for line in self.notes)])

    def recipe(
        self, path: pathlib.Path, base: Config | None = None, given: Collection[str] = ()
    ) -> Config:
        """Writes `config(base, given)` as a recipe, FILE.py, with the reasons; returns it.

        Raises ConfigError for a name that is no Python file's and for a file of other content.
        """
        config, taken, refused = self.applied(Config() if base is None else base, given)
        layout = config.layout
        window = f"a recent window of {layout.recent_min} to {layout.recent} events"
        shape = {
            "compressed": f"{layout.max_segments} x ({layout.segment_size} items + {layout.tokens} "
            f"tokens) + {window}",
            "full": f"one window of {layout.history} events, no tokens",
            "recent": window,
        }[layout.mode]
        data = config.data
        about = [
            f"Data: {data.dataset} {data.path}".rstrip() + "; described when this was written.",
            f"Layout: {shape}.",
            "Hardware, cost and quality: not measured; `--config.train.dry_run=True` prints what "
            "a step needs.",
            *(f"Note: {line}." for line in (*self.notes, *refused)),
        ]
        recipe_text.write(
            path,
            config,
            title=f"Advice of `jaxrec describe` for {data.path or data.dataset}.",
            about=about,
            reasons={choice.key: choice.reason for choice in taken},
        )
        return config


def advise(statistics: Json, fixed: Mapping[str, object] | None = None) -> Advice:
    """A recipe for data with these statistics; a pure function.

    statistics: of `description.describe`. fixed: dotted key -> value of settings that are decided;
    there is no choice for them, and others heed them (the layout its mode, averages the steps).
    """
    facts, fixed = Facts.of(statistics), fixed or {}
    chosen = advice_rules.shape(facts, str(fixed.get("layout.mode", "")))
    choices = (
        *advice_rules.layout(facts, chosen),
        *advice_rules.model(facts),
        *advice_rules.loss(facts),
        *advice_rules.repeats(facts),
        *advice_rules.training(facts, chosen, fixed),
    )
    free = tuple(choice for choice in choices if choice.key not in fixed)
    return Advice(free, tuple(advice_rules.notes(facts, chosen)))


def for_data(data: Prepared | Json, base: Config, given: Collection[str] = ()) -> Config:
    """`base` with the settings that its data asks for, validated.

    data: prepared data, which is described in one pass over its events, or its statistics. given:
    dotted keys whose value in `base` the user chose; they stay, and so does every key of data.*.
    Choices that a given value rules out are left out. Raises ConfigError where `base` is invalid.
    """
    statistics = description.describe(data) if isinstance(data, Prepared) else data
    return advise(statistics, values(base, given)).config(base, given)


def values(config: Config, keys: Collection[str]) -> dict[str, object]:
    """Dotted key -> value of some keys. Raises ConfigError for an unknown one."""
    for key in keys:
        check_key(config, key)
    return {key: lookup(config, key) for key in keys}


def put(config: Config, key: str, value: object) -> None:
    """Sets the value behind a dotted key."""
    group, _, name = key.rpartition(".")
    setattr(lookup(config, group) if group else config, name, value)
