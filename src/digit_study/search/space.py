"""A search space as data: config keys with choices or ranges, and the conditions under which they matter."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import TYPE_CHECKING, Any

from digit_study.config import compose as composition
from digit_study.config.run import Config, TrainingConfig, flatten, validate
from digit_study.terminal.errors import StudyError

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

Params = dict[str, Any]
GROUPS = ("model", "training")


@dataclass(frozen=True)
class Dimension:
    """One key that is searched.

    Attributes:
        key: a config key such as ``model.filters``, or a group such as ``model``.
        kind: categorical, int or float.
        choices: values of a categorical.
        low: lower end, included.
        high: upper end, included.
        step: distance between values; None is continuous (float) or 1 (int).
        log: whether values are spread evenly in the logarithm.
        when: other dimensions and the values of theirs under which this one matters.
    """

    key: str
    kind: str
    choices: tuple[Any, ...] = ()
    low: float = 0.0
    high: float = 0.0
    step: float | None = None
    log: bool = False
    when: dict[str, tuple[Any, ...]] = field(default_factory=dict)

    def ends(self) -> tuple[Any, ...]:
        """Every choice, or both ends of the range."""
        return self.choices if self.kind == "categorical" else (self.low, self.high)

    def is_active(self, params: Mapping[str, Any]) -> bool:
        """Whether it matters, given the dimensions before it."""
        return all(params.get(key) in allowed for key, allowed in self.when.items())

    def contains(self, value: Any) -> bool:
        """Whether ``value`` can be suggested."""
        if self.kind == "categorical":
            return value in self.choices
        if isinstance(value, bool) or not isinstance(value, int | float) or not self.low <= value <= self.high:
            return False
        if self.step is None:
            return True
        steps = (value - self.low) / self.step
        return math.isclose(steps, round(steps), abs_tol=1e-9)

    def distribution(self) -> BaseDistribution:
        """The same as Optuna says it."""
        from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

        if self.kind == "categorical":
            return CategoricalDistribution(self.choices)
        if self.kind == "int":
            return IntDistribution(int(self.low), int(self.high), log=self.log, step=int(self.step or 1))
        return FloatDistribution(float(self.low), float(self.high), log=self.log, step=self.step)

    def grid(self) -> tuple[Any, ...] | None:
        """All its values, or None where they cannot be counted."""
        if self.kind == "categorical":
            return self.choices
        if self.kind == "int":
            return tuple(range(int(self.low), int(self.high) + 1, int(self.step or 1)))
        if self.step is None:
            return (self.low,) if self.low == self.high else None
        count = int((self.high - self.low) / self.step + 1e-9) + 1
        return tuple(round(self.low + at * self.step, 12) for at in range(count))


def flat_values(base: Config) -> dict[str, Any]:
    """Every leaf of a run by its key, and its network by the name of the group."""
    return {**flatten(base), "model": base.model.name}


def with_values(config: Any, values: Mapping[str, Any]) -> Any:
    """Copy a config dataclass with dotted leaves replaced; types follow the leaf that is replaced.

    Raises:
        StudyError: a value is not of the type of its key.
    """
    for key, value in values.items():
        config = _with_value(config, key.split("."), value, key)
    return config


def _with_value(node: Any, path: list[str], value: Any, key: str) -> Any:
    name, *rest = path
    if rest:
        return dataclasses.replace(node, **{name: _with_value(getattr(node, name), rest, value, key)})
    return dataclasses.replace(node, **{name: _cast(value, str(type(node).__annotations__[name]), key)})


def _cast(value: Any, annotation: str, key: str) -> Any:
    kinds: dict[str, Callable[[Any], bool]] = {
        "bool": lambda v: isinstance(v, bool),
        "int": lambda v: isinstance(v, int) and not isinstance(v, bool),
        "float": lambda v: isinstance(v, int | float) and not isinstance(v, bool),
        "str": lambda v: isinstance(v, str),
    }
    base, _, optional = annotation.partition(" | ")
    if value is None and optional == "None":
        return None
    if not kinds[base](value):
        raise StudyError(f"`{key}` must be of type {base}, got {value!r} of type {type(value).__name__}")
    return float(value) if base == "float" else value


def fingerprint(params: Mapping[str, Any]) -> str:
    """Params as one string, equal for equal configurations."""
    return json.dumps(params, sort_keys=True)


def suggest(trial: Any, dimensions: Sequence[Dimension]) -> Params:
    """Let an Optuna trial choose a value for every dimension that matters."""
    params: Params = {}
    for one in dimensions:
        if one.is_active(params):
            params[one.key] = trial._suggest(one.key, one.distribution())
    return params


def baseline(dimensions: Sequence[Dimension], base: Config) -> tuple[Params, list[str]]:
    """The hand-set config as params, and the keys whose value lies outside the space."""
    flat = flat_values(base)
    params: Params = {}
    outside = []
    for one in dimensions:
        if not one.is_active(params):
            continue
        if one.contains(flat.get(one.key)):
            params[one.key] = flat[one.key]
        else:
            outside.append(one.key)
    return params, outside


def grid(dimensions: Sequence[Dimension]) -> list[Params] | None:
    """All distinct configurations in order, or None where a range is continuous."""
    grids = [one.grid() for one in dimensions]
    if any(values is None for values in grids):
        return None
    points: dict[tuple[tuple[str, Any], ...], Params] = {}
    for values in product(*[values for values in grids if values is not None]):
        params: Params = {}
        for one, value in zip(dimensions, values, strict=True):
            if one.is_active(params):
                params[one.key] = value
        points[tuple(params.items())] = params
    return list(points.values())


#: More points than this are not listed; no study runs so many.
LARGEST_GRID = 100_000


def grid_size(dimensions: Sequence[Dimension]) -> int | None:
    """How many combinations there are, conditions not counted; None where a range is continuous."""
    sizes = [len(values) if (values := one.grid()) is not None else None for one in dimensions]
    return None if None in sizes else math.prod(size for size in sizes if size is not None)


def _resolved(chosen: Any, base: Config) -> Any:
    """A group's option with what was resolved once for the whole study."""
    if not isinstance(chosen, TrainingConfig):
        return chosen
    precision = base.training.precision if chosen.precision == "auto" else chosen.precision
    return dataclasses.replace(chosen, precision=precision, threads=chosen.threads or base.training.threads)


def apply(params: Mapping[str, Any], base_overrides: Sequence[str], base: Config, root: str = "study") -> Config:
    """The run that ``params`` stand for, checked.

    Raises:
        StudyError: the combination breaks a rule, as a deep network on a small image does.
    """
    groups = {key: value for key, value in params.items() if key in GROUPS}
    if groups:
        chosen = composition.compose_config([*base_overrides, *(f"{k}={v}" for k, v in groups.items())], root)
        base = dataclasses.replace(base, **{key: _resolved(getattr(chosen, key), base) for key in groups})
    config: Config = with_values(base, {key: value for key, value in params.items() if key not in groups})
    validate(config)
    return config
