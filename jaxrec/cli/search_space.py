"""Which values `jaxrec tune` may try: `--search KEY=...`, checked before anything is trained.

model.width=32,64,128                 one of these
model.repeat_half_lives=(),(16.0,0.0) one of these tuples
layout.tokens=1..8                    an integer between, both ends included
train.steps=500..4000:step=500        an integer of a grid
train.learning_rate=1e-4..1e-2:log    a number, its logarithm drawn evenly
"""

import ast
import math
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

from jaxrec.config import Config, check_key, lookup
from jaxrec.config.value_checks import check_values
from jaxrec.data.advice import put
from jaxrec.errors import ConfigError

if TYPE_CHECKING:
    from optuna import Trial

SYNTAX = (
    "needed is KEY=A,B,... or KEY=LOW..HIGH, with :log or :step=N behind it where numbers are "
    "drawn so"
)
GROUPS = ("layout", "model", "loss", "train")
# keys that decide how a trial is measured or kept, not what it learns
MEASURES = (
    *("train.metric", "train.validation_users", "train.eval_every", "train.checkpoint_every"),
    *("train.keep", "train.log_every", "train.patience", "train.dry_run", "train.profile_steps"),
    *("train.continue_on_new_data", "train.compilation_cache", "train.loggers"),
)


class Choices(NamedTuple):
    """One of some values of a key."""

    key: str
    values: tuple[Any, ...]

    @property
    def size(self) -> int:
        """How many values there are."""
        return len(self.values)

    def suggest(self, trial: "Trial") -> object:
        """The value that a trial takes; tuples are stored as text."""
        by_label: dict[Any, Any] = {
            v if isinstance(v, str | int | float) else repr(v): v for v in self.values
        }
        return by_label[trial.suggest_categorical(self.key, list(by_label))]


class Range(NamedTuple):
    """Numbers from low to high, integers with `whole`; step: 0 for any."""

    key: str
    low: float
    high: float
    log: bool
    step: float
    whole: bool

    @property
    def size(self) -> float:
        """How many values there are; infinite for real numbers."""
        if not self.whole and not self.step:
            return math.inf
        return math.floor((self.high - self.low) / (self.step or 1) + 1e-9) + 1

    def suggest(self, trial: "Trial") -> object:
        """The value that a trial takes."""
        if self.whole:
            step = int(self.step) or 1
            return trial.suggest_int(
                self.key, int(self.low), int(self.high), step=step, log=self.log
            )
        return trial.suggest_float(
            self.key, self.low, self.high, step=self.step or None, log=self.log
        )


Dimension: TypeAlias = Choices | Range


def parse(texts: Sequence[str], given: Sequence[str] = ()) -> list[Dimension]:
    """The dimensions that `--search` names. given: keys that the command line sets.

    Raises ConfigError for text that is none, an unknown key, one that is no setting of a model,
    and a value that the key may not have.
    """
    if not texts:
        raise ConfigError(f"--search is missing: {SYNTAX}, for example layout.tokens=1,2,4,8")
    found = [_dimension(text) for text in texts]
    keys = [dimension.key for dimension in found]
    for key in keys:
        if keys.count(key) > 1:
            raise ConfigError(f"--search {key}: is given {keys.count(key)} times, once is needed")
        if key in given:
            raise ConfigError(f"--search {key}: --config.{key} sets it already; leave one out")
    return found


def combinations(space: Sequence[Dimension]) -> float:
    """How many settings there are; infinite where a number is real."""
    return math.prod(dimension.size for dimension in space)


def suggest(space: Sequence[Dimension], trial: "Trial") -> dict[str, object]:
    """Dotted key -> value of a trial."""
    return {dimension.key: dimension.suggest(trial) for dimension in space}


def _dimension(text: str) -> Dimension:
    key, equals, spec = text.partition("=")
    if not equals or not spec.strip():
        raise ConfigError(f"--search {text!r}: {SYNTAX}")
    check_key(Config(), key)
    if key.partition(".")[0] not in GROUPS or key in MEASURES:
        raise ConfigError(
            f"--search {key}: trials must have the same data, seed and validation to be compared; "
            f"searched are keys of {', '.join(GROUPS)} that change what is learned"
        )
    default = lookup(Config(), key)
    numeric = isinstance(default, int | float) and not isinstance(default, bool)
    if numeric and ".." in spec:
        return _range(key, spec, whole=isinstance(default, int))
    values = _values(key, spec, default)
    for value in values:
        _check(key, value)
    repeated = [value for value in values if values.count(value) > 1]
    if repeated:
        raise ConfigError(f"--search {key}={spec}: {repeated[0]!r} stands there twice")
    if len(values) < 2:
        raise ConfigError(
            f"--search {key}={spec}: one value is no search; set it by --config.{key}={spec}"
        )
    return Choices(key, tuple(values))


def _values(key: str, spec: str, default: object) -> list[Any]:
    if isinstance(default, str):
        return [part.strip() for part in spec.split(",")]
    try:
        values = list(ast.literal_eval(f"[{spec}]"))
    except (ValueError, SyntaxError) as error:
        raise ConfigError(
            f"--search {key}={spec}: values like {default!r}, with commas between, are needed"
        ) from error
    return [float(v) if type(default) is float and type(v) is int else v for v in values]


def _range(key: str, spec: str, *, whole: bool) -> Range:
    number = r"[-+]?\d[\d_]*" if whole else r"[-+]?[\d.]+(?:e[-+]?\d+)?"
    match = re.fullmatch(rf"({number})\.\.({number})(:log)?(?::step=({number}))?", spec.strip())
    if match is None:
        kind = "integers" if whole else "numbers"
        raise ConfigError(f"--search {key}={spec}: LOW..HIGH of {kind}, :log or :step=N are needed")
    try:
        low, high, step = (float(match[group] or 0) for group in (1, 2, 4))
    except ValueError as error:
        raise ConfigError(f"--search {key}={spec}: {error}") from error
    log = match[3] is not None
    if low >= high:
        raise ConfigError(f"--search {key}={spec}: {low:g} must be below {high:g}")
    if log and low <= 0:
        raise ConfigError(f"--search {key}={spec}: :log needs numbers above 0")
    if match[4] is not None and (log or step <= 0):
        raise ConfigError(f"--search {key}={spec}: a step above 0 without :log is needed")
    if step and abs(round((high - low) / step) * step - (high - low)) > 1e-9 * high:
        raise ConfigError(f"--search {key}={spec}: steps of {step:g} do not lead to {high:g}")
    for end in (low, high):
        _check(key, int(end) if whole else end)
    return Range(key, low, high, log, step, whole)


def _check(key: str, value: object) -> None:
    """Raises ConfigError for a value of another type, not among the choices or out of bounds."""
    config = Config()
    put(config, key, value)
    try:
        check_values(config)
    except ConfigError as error:
        raise ConfigError(f"--search {error}") from error
