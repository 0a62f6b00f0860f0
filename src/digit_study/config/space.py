"""A search space as data: config keys with choices or ranges, when they matter, and what all of it must obey.

A new search dimension is a line in ``conf/search/space/*.yaml``; any key of the run's config can be one.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import TYPE_CHECKING, Any

from digit_study.config import compose
from digit_study.config.run_config import RULES, Config, with_values
from digit_study.model.recipe import TrainingConfig
from digit_study.support.messages import StudyError, flatten, nearest, raise_violations

if TYPE_CHECKING:
    import optuna

Params = dict[str, Any]
GROUPS = ("model", "training")
SEARCHABLE = ("data.limit", "model.", "training.")
FIELDS = ("type", "low", "high", "step", "log", "choices", "when")


@dataclass(frozen=True)
class Dimension:
    """One key that is searched."""

    key: str  # a config key such as ``model.filters``, or a group such as ``model``
    kind: str  # categorical, int or float
    choices: tuple[Any, ...] = ()  # of a categorical
    low: float = 0.0  # both ends are included
    high: float = 0.0
    step: float | None = None  # None is continuous (float) or 1 (int)
    log: bool = False  # whether values are spread evenly in the logarithm
    when: dict[str, tuple[Any, ...]] = field(
        default_factory=dict
    )  # other keys, and their values for which it matters

    def is_active(self, params: Mapping[str, Any]) -> bool:
        """Whether it matters, given the dimensions before it."""
        return all(params.get(key) in allowed for key, allowed in self.when.items())

    def contains(self, value: Any) -> bool:
        """Whether ``value`` can be suggested."""
        if self.kind == "categorical":
            return value in self.choices
        if (
            isinstance(value, bool)
            or not isinstance(value, int | float)
            or not self.low <= value <= self.high
        ):
            return False
        steps = (value - self.low) / self.step if self.step is not None else 0.0
        return math.isclose(steps, round(steps), abs_tol=1e-9)

    def suggest(self, trial: optuna.Trial) -> Any:
        """The value that an Optuna trial chooses."""
        if self.kind == "categorical":
            return trial.suggest_categorical(self.key, self.choices)
        if self.kind == "int":
            return trial.suggest_int(
                self.key, int(self.low), int(self.high), step=int(self.step or 1), log=self.log
            )
        return trial.suggest_float(
            self.key, float(self.low), float(self.high), step=self.step, log=self.log
        )

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


def fingerprint(params: Mapping[str, Any]) -> str:
    """Params as one string, equal for equal configurations."""
    return json.dumps(params, sort_keys=True)


def short_name(params: Mapping[str, Any]) -> str:
    """Params as short text: the last part of every key and its value."""
    parts = (
        f"{key.split('.')[-1]}={f'{value:.3g}' if isinstance(value, float) else value}"
        for key, value in params.items()
    )
    return " ".join(parts)


def suggest(trial: optuna.Trial, dimensions: Sequence[Dimension]) -> Params:
    """Let an Optuna trial choose a value for every dimension that matters."""
    params: Params = {}
    for one in dimensions:
        if one.is_active(params):
            params[one.key] = one.suggest(trial)
    return params


def flat_values(base: Config) -> dict[str, Any]:
    """Every leaf of a run by its key, and its network by the name of the group."""
    return {**flatten(base), "model": base.model.name}


def baseline(dimensions: Sequence[Dimension], base: Config) -> tuple[Params, list[str]]:
    """The hand-set config as params, and the keys whose value lies outside the space."""
    flat, params, outside = flat_values(base), Params(), []
    for one in dimensions:
        if one.is_active(params) and one.contains(flat.get(one.key)):
            params[one.key] = flat[one.key]
        elif one.is_active(params):
            outside.append(one.key)
    return params, outside


def grid(dimensions: Sequence[Dimension]) -> list[Params] | None:
    """All distinct configurations in order, or None where a range is continuous."""
    grids = [one.grid() for one in dimensions]
    if any(values is None for values in grids):
        return None
    points: dict[str, Params] = {}
    for values in product(*[values for values in grids if values is not None]):
        params: Params = {}
        for one, value in zip(dimensions, values, strict=True):
            if one.is_active(params):
                params[one.key] = value
        points[fingerprint(params)] = params
    return list(points.values())


def apply(
    params: Mapping[str, Any], base_overrides: Sequence[str], base: Config, root: str = "study"
) -> Config:
    """The run that ``params`` stand for; raises StudyError if the combination breaks a rule."""
    groups = {key: value for key, value in params.items() if key in GROUPS}
    if groups:
        chosen = compose.compose_config(
            [*base_overrides, *(f"{k}={v}" for k, v in groups.items())], root
        )
        for key in groups:
            option = getattr(chosen, key)
            if isinstance(
                option, TrainingConfig
            ):  # what was resolved once holds for the whole study
                precision = (
                    base.training.precision if option.precision == "auto" else option.precision
                )
                threads = option.threads or base.training.threads
                option = dataclasses.replace(option, precision=precision, threads=threads)
            base = dataclasses.replace(base, **{key: option})
    config: Config = with_values(
        base, {key: value for key, value in params.items() if key not in groups}
    )
    config.validate()
    return config


def parse_space(raw: Mapping[str, Any], base: Config, root: str = "study") -> list[Dimension]:
    """Check a space, as in ``conf/search/space/*.yaml``, and put it in an order in which conditions come first.

    Every end of every range must be valid in the run ``base`` that is varied; ``root`` is the config whose groups may
    be searched. Raises a StudyError that lists all that is wrong.
    """
    if not raw:
        raise StudyError(
            "`search.space` must name at least one key to search, got none: take search/space=default"
        )
    known = [*GROUPS, *(key for key in flatten(base) if key.startswith(SEARCHABLE))]
    raise_violations(
        problem for key, entry in raw.items() for problem in _entry_problems(key, entry, known)
    )
    dimensions = {key: _dimension(key, entry) for key, entry in raw.items()}
    raise_violations(
        problem for one in dimensions.values() for problem in _when_problems(one, dimensions, base)
    )
    for key, one in dimensions.items():  # a condition on a key that is not searched holds
        when = {name: values for name, values in one.when.items() if name in dimensions}
        dimensions[key] = dataclasses.replace(one, when=when)
    ordered = _ordered(list(dimensions.values()))
    raise_violations(
        problem for one in ordered for problem in _value_problems(one, dimensions, base, root)
    )
    return ordered


def _entry_problems(key: str, entry: Any, known: Sequence[str]) -> Iterator[str]:
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
        choices = entry.get("choices")
        if extra := sorted({"low", "high", "step", "log"} & set(entry)):
            yield f"{where} takes either choices or a range, got choices and {', '.join(extra)}: drop one"
        if not isinstance(choices, list) or not choices:
            yield f"{where} must have at least one choice, got {choices!r}"
        elif len(set(map(str, choices))) < len(choices):
            yield f"{where} must have each choice once, got {choices!r}"
    elif problem := _range_problem(entry):
        yield f"{where} {problem}"
    conditions = entry.get("when") or {}
    if not isinstance(conditions, Mapping):
        yield f"{where}: `when` must map a key to the values under which this one matters, got {conditions!r}"
        return
    for condition, allowed in conditions.items():
        if not isinstance(allowed, list) or not allowed:
            yield f"{where}: `when` must list the values of `{condition}` under which it matters, got {allowed!r}"


def _range_problem(entry: Mapping[str, Any]) -> str | None:
    low, high, step = entry.get("low"), entry.get("high"), entry.get("step")
    numbers = [value for value in (low, high, step) if value is not None]
    if low is None or high is None:
        return f"must have choices, or low and high, got {dict(entry)!r}"
    if any(
        isinstance(n, bool) or not isinstance(n, int | float) or not math.isfinite(n)
        for n in numbers
    ):
        return f"must have finite numbers as low, high and step, got {dict(entry)!r}"
    if low > high:
        return f"must have low ≤ high, got low {low} and high {high}"
    if entry.get("type", "int") == "int" and any(number != int(number) for number in numbers):
        return f"must have whole numbers, got {dict(entry)!r}: give type: float for others"
    if step is not None and step <= 0:
        return f"must have a step greater than 0, got {step}"
    if entry.get("log") and low <= 0:
        return f"must have low greater than 0 with log: true, got {low}"
    if entry.get("log") and step is not None:
        return "takes either log or step, got both: drop one"
    return None


def _dimension(key: str, entry: Mapping[str, Any]) -> Dimension:
    when = {name: tuple(allowed) for name, allowed in (entry.get("when") or {}).items()}
    if "choices" in entry:
        return Dimension(key, "categorical", choices=tuple(entry["choices"]), when=when)
    kind, step = entry.get("type", "int"), entry.get("step")
    number = float if kind == "float" else int
    low, high = number(entry["low"]), number(entry["high"])
    if step is not None:  # the last value that the steps reach
        high = number(round(low + math.floor((high - low) / step + 1e-9) * step, 12))
    return Dimension(
        key, kind, low=low, high=high, step=step, log=bool(entry.get("log")), when=when
    )


def _when_problems(
    one: Dimension, dimensions: Mapping[str, Dimension], base: Config
) -> Iterator[str]:
    """What is wrong with its conditions: a searched key must be able to have each value, another must have one."""
    flat = flat_values(base)
    for key, allowed in one.when.items():
        where = f"`search.space` key `{one.key}` has a `when` on `{key}`"
        if key in dimensions:
            for value in (value for value in allowed if not dimensions[key].contains(value)):
                yield f"{where}, which is never {value!r}{nearest(str(value), map(str, dimensions[key].choices))}"
        elif (group := key.split(".")[0]) in dimensions:
            yield f"{where}, which the searched group `{group}` decides: give its options, when: {{{group}: [...]}}"
        elif key not in flat:
            yield f"{where}, which is no config key{nearest(key, flat)}"
        elif flat[key] not in allowed:
            yield (
                f"{where} being {' or '.join(map(str, allowed))}, but it is {flat[key]} and not searched: "
                f"search it too, set it, or leave `{one.key}` out"
            )


def _value_problems(
    one: Dimension, dimensions: Mapping[str, Dimension], base: Config, root: str
) -> Iterator[str]:
    """One sentence if the config's own rules refuse an end of its range under any of its conditions."""
    conditions = dict(one.when)
    for key in one.when:
        conditions = {**dimensions[key].when, **conditions}
    group = one.key.split(".")[0]
    if group in dimensions and group != one.key:
        conditions.setdefault(group, dimensions[group].choices)
    contexts = [
        dict(zip(conditions, values, strict=True)) for values in product(*conditions.values())
    ]
    ends = one.choices if one.kind == "categorical" else (one.low, one.high)
    for value, context in product(ends, contexts):
        try:
            if one.key not in GROUPS:
                with_values(base, {one.key: value})
                if one.key in RULES and (problem := RULES[one.key].violation(one.key, value)):
                    raise StudyError(problem)
            apply({**context, one.key: value}, [], base, root)
        except StudyError as error:
            given = (
                " with " + ", ".join(f"{key}={used}" for key, used in context.items())
                if context
                else ""
            )
            yield f"`search.space` key `{one.key}` reaches {value!r}{given}: {error}"
            return


def _ordered(dimensions: list[Dimension]) -> list[Dimension]:
    """Conditions first, otherwise as written."""
    ordered: list[Dimension] = []
    left = list(dimensions)
    while left:
        placed = {one.key for one in ordered}
        ready = next((one for one in left if set(one.when) <= placed), None)
        if ready is None:
            raise StudyError(
                f"`search.space` key `{left[0].key}` has a `when` on {', '.join(left[0].when)}, and so on itself"
            )
        ordered.append(ready)
        left.remove(ready)
    return ordered
