"""A search space as data: config keys with choices or ranges, and the conditions under which they matter."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import TYPE_CHECKING, Any

from digit_study import composition
from digit_study.config import RULES, Config, complaint, flatten, validate
from digit_study.errors import StudyError
from digit_study.naming import nearest

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

Params = dict[str, Any]
SEARCHABLE = ("data.limit", "model.", "training.")
GROUPS = ("model", "training")
FIELDS = ("type", "low", "high", "step", "log", "choices", "when")


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
        return tuple(self.low + at * self.step for at in range(int((self.high - self.low) / self.step + 1e-9) + 1))


def parse_space(raw: Mapping[str, Any], base: Config, root: str = "study") -> list[Dimension]:
    """Check a space against the config's own rules and put it in an order in which conditions come first.

    Args:
        raw: config key to its choices or range, as in ``conf/search/space/*.yaml``.
        base: the run that is varied; every end of every range must be valid in it.
        root: root config whose keys and groups may be searched.

    Raises:
        StudyError: lists all that is wrong.
    """
    if not raw:
        raise StudyError("`search.space` must name at least one key to search, got none: take search/space=default")
    known = [*GROUPS, *(key for key in flatten(base) if key.startswith(SEARCHABLE))]
    complaint("\n".join(flaw for key, entry in raw.items() for flaw in _flaws(key, entry, known)))
    dimensions = [_dimension(key, entry) for key, entry in raw.items()]
    complaint("\n".join(flaw for one in dimensions for flaw in _value_flaws(one, base, root)))
    return _ordered(dimensions)


def _flaws(key: str, entry: Any, known: Sequence[str]) -> Iterator[str]:
    where = f"`search.space` key `{key}`"
    if key not in known:
        yield f"{where} is no config key that can be searched{nearest(key, known)}"
        return
    if not isinstance(entry, Mapping) or not entry:
        yield f"{where} must have choices, or low and high, got {entry!r}"
        return
    for name in set(entry) - set(FIELDS):
        yield f"{where} must have fields from {', '.join(FIELDS)}, got {name!r}{nearest(str(name), FIELDS)}"
    if entry.get("type", "int") not in ("categorical", "int", "float"):
        yield f"{where} must be of type categorical, int or float, got {entry['type']!r}"
    elif "choices" in entry or entry.get("type") == "categorical":
        yield from _choice_flaws(where, entry)
    else:
        yield from _range_flaws(where, entry)
    for condition, allowed in (entry.get("when") or {}).items():
        if not isinstance(allowed, list) or not allowed:
            yield f"{where}: `when` must list the values of `{condition}` under which it matters, got {allowed!r}"


def _choice_flaws(where: str, entry: Mapping[str, Any]) -> Iterator[str]:
    choices = entry.get("choices")
    if not isinstance(choices, list) or not choices:
        yield f"{where} must have at least one choice, got {choices!r}"
    elif len(set(map(str, choices))) < len(choices):
        yield f"{where} must have each choice once, got {choices!r}"


def _range_flaws(where: str, entry: Mapping[str, Any]) -> Iterator[str]:
    low, high, step = entry.get("low"), entry.get("high"), entry.get("step")
    numbers = [value for value in (low, high, step) if value is not None]
    if low is None or high is None:
        yield f"{where} must have choices, or low and high, got {dict(entry)!r}"
    elif any(isinstance(n, bool) or not isinstance(n, int | float) or not math.isfinite(n) for n in numbers):
        yield f"{where} must have finite numbers as low, high and step, got {dict(entry)!r}"
    elif low > high:
        yield f"{where} must have low ≤ high, got low {low} and high {high}"
    elif entry.get("type", "int") == "int" and any(number != int(number) for number in numbers):
        yield f"{where} must have whole numbers, got {dict(entry)!r}: give type: float for others"
    elif step is not None and step <= 0:
        yield f"{where} must have a step greater than 0, got {step}"
    elif entry.get("log") and low <= 0:
        yield f"{where} must have low greater than 0 with log: true, got {low}"
    elif entry.get("log") and step is not None:
        yield f"{where} takes either log or step, got both: drop one"


def _dimension(key: str, entry: Mapping[str, Any]) -> Dimension:
    when = {name: tuple(allowed) for name, allowed in (entry.get("when") or {}).items()}
    if "choices" in entry:
        return Dimension(key, "categorical", choices=tuple(entry["choices"]), when=when)
    kind = entry.get("type", "int")
    return Dimension(
        key, kind, low=entry["low"], high=entry["high"], step=entry.get("step"), log=bool(entry.get("log")), when=when
    )


def _value_flaws(dimension: Dimension, base: Config, root: str) -> Iterator[str]:
    """One sentence for every end of a range that the config's own rules refuse."""
    for value in dimension.ends():
        try:
            if dimension.key in GROUPS:
                composition.compose_config([f"{dimension.key}={value}"], root)
            else:
                _check_leaf(dimension.key, value, base)
        except StudyError as error:
            yield f"`search.space` key `{dimension.key}` reaches {value!r}: {error}"


def _check_leaf(key: str, value: Any, base: Config) -> None:
    changed = with_values(base, {key: value})
    rule = RULES.get(key)
    if rule is not None and value is not None and not rule.holds(value):
        raise StudyError(f"`{key}` must be {rule.text}, got {value!r}{nearest(str(value), rule.choices)}")
    validate(changed)


def _ordered(dimensions: list[Dimension]) -> list[Dimension]:
    """Conditions first, otherwise as written."""
    ordered: list[Dimension] = []
    left = list(dimensions)
    while left:
        placed = {one.key for one in ordered}
        ready = [one for one in left if set(one.when) <= placed]
        if not ready:
            stuck = left[0]
            raise StudyError(
                f"`search.space` key `{stuck.key}` has a `when` on {', '.join(stuck.when)}, "
                "which must be searched too, and not in a circle"
            )
        ordered.append(ready[0])
        left.remove(ready[0])
    return ordered


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
    flat = {**flatten(base), "model": base.model.name}
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


def grid_size(dimensions: Sequence[Dimension]) -> int | None:
    """How many combinations there are, conditions not counted; None where a range is continuous."""
    sizes = [len(values) if (values := one.grid()) is not None else None for one in dimensions]
    return None if None in sizes else math.prod(size for size in sizes if size is not None)


def apply(params: Mapping[str, Any], base_overrides: Sequence[str], base: Config, root: str = "study") -> Config:
    """The run that ``params`` stand for, checked.

    Raises:
        StudyError: the combination breaks a rule, as a deep network on a small image does.
    """
    groups = {key: value for key, value in params.items() if key in GROUPS}
    if groups:
        chosen = composition.compose_config([*base_overrides, *(f"{k}={v}" for k, v in groups.items())], root)
        base = dataclasses.replace(base, **{key: getattr(chosen, key) for key in groups})
    config: Config = with_values(base, {key: value for key, value in params.items() if key not in groups})
    validate(config)
    return config
