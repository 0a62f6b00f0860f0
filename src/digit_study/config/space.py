"""A search space as data: config keys with choices or ranges, and conditions on other keys.

A new search dimension is a line in ``conf/search/space/*.yaml``, or a swept key of a command line
(:mod:`digit_study.config.space_overrides`); any key of the run's config can be a dimension.
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
from digit_study.config.run_config import Config
from digit_study.config.space_overrides import FIELDS, GROUPS, searchable_keys
from digit_study.model.recipe import TrainingConfig
from digit_study.support.errors import StudyError
from digit_study.support.rules import flatten, raise_violations, with_values
from digit_study.support.suggestions import nearest

if TYPE_CHECKING:
    import optuna

Params = dict[str, Any]
#: Fields of a range, which do not go with choices.
RANGE_FIELDS = ("low", "high", "step", "log")
KINDS = ("categorical", "int", "float")
#: Types of the values of ranges, by kind.
NUMBER_TYPES: dict[str, type[int] | type[float]] = {"int": int, "float": float}
#: Digits to which values of a stepped range are rounded: 0.1 + 0.2 is 0.3.
STEP_DIGITS = 12
#: How far from a whole number of steps a value may lie.
STEP_TOLERANCE = 1e-9


@dataclass(frozen=True)
class Dimension:
    """Describe a config key that is searched.

    Attributes:
        key: A key such as ``model.filters``, or a group such as ``model``.
        kind: categorical, int or float.
        choices: Values of a categorical dimension.
        low: Lower end of a range, included.
        high: Upper end of a range, included.
        step: Distance of values; None for a continuous range.
        log: Whether values are spread evenly in the logarithm.
        when: Other keys, each with the values under which this dimension matters.
    """

    key: str
    kind: str
    choices: tuple[Any, ...] = ()
    low: float = 0.0
    high: float = 0.0
    step: float | None = None
    log: bool = False
    when: dict[str, tuple[Any, ...]] = field(default_factory=dict)

    @property
    def values(self) -> str:
        """Say which values there are."""
        if self.kind == "categorical":
            return ", ".join(map(str, self.choices))
        text = f"{self.low:g} to {self.high:g}"
        if self.log:
            text += " (log)"
        has_gaps = self.kind == "float" or self.step != 1
        if self.step and has_gaps:
            text += f", step {self.step:g}"
        return text

    @property
    def condition(self) -> str:
        """Say when the dimension matters; empty if always."""
        conditions: list[str] = []
        for key, allowed in self.when.items():
            values = " or ".join(map(str, allowed))
            conditions.append(f"{key} is {values}")
        return "; ".join(conditions)

    def is_active(self, params: Mapping[str, Any]) -> bool:
        """Return whether the dimension matters, given the params of those before it."""
        return all(params.get(key) in allowed for key, allowed in self.when.items())

    def contains(self, value: Any) -> bool:
        """Return whether ``value`` can be suggested."""
        if self.kind == "categorical":
            return value in self.choices
        if isinstance(value, bool) or not isinstance(value, int | float):
            return False
        if not self.low <= value <= self.high:
            return False
        if self.step is None:
            return True
        steps = (value - self.low) / self.step
        return math.isclose(steps, round(steps), abs_tol=STEP_TOLERANCE)

    def suggest(self, trial: optuna.Trial) -> Any:
        """Return the value that an Optuna trial chooses."""
        if self.kind == "categorical":
            return trial.suggest_categorical(self.key, self.choices)
        if self.kind == "int":
            return trial.suggest_int(
                self.key,
                int(self.low),
                int(self.high),
                step=int(self.step or 1),
                log=self.log,
            )
        return trial.suggest_float(
            self.key,
            float(self.low),
            float(self.high),
            step=self.step,
            log=self.log,
        )

    def grid(self) -> tuple[Any, ...] | None:
        """Return all values in order; None where they cannot be counted."""
        if self.kind == "categorical":
            return self.choices
        if self.step is not None:
            steps = _whole_steps(self.low, self.high, self.step)
            values = [self.low + number * self.step for number in range(steps + 1)]
            return tuple(round(value, STEP_DIGITS) for value in values)
        if self.low == self.high:
            return (self.low,)
        return None

    def ends(self) -> tuple[Any, ...]:
        """Return the values that have to be valid: all choices, or both ends of a range."""
        if self.kind == "categorical":
            return self.choices
        return (self.low, self.high)


def fingerprint(params: Mapping[str, Any]) -> str:
    """Return params as a string that is equal for equal configurations."""
    return json.dumps(params, sort_keys=True)


def short_name(params: Mapping[str, Any]) -> str:
    """Return params as short text: the last part of every key and its value."""
    words: list[str] = []
    for key, value in params.items():
        last_part = key.split(".")[-1]
        shown = str(value)
        if isinstance(value, float):
            shown = f"{value:.3g}"
        words.append(f"{last_part}={shown}")
    return " ".join(words)


def suggest(trial: optuna.Trial, dimensions: Sequence[Dimension]) -> Params:
    """Let an Optuna trial choose a value for every dimension that matters."""
    params: Params = {}
    for dimension in dimensions:
        if dimension.is_active(params):
            params[dimension.key] = dimension.suggest(trial)
    return params


def flat_values(base: Config) -> dict[str, Any]:
    """Return every setting of a run by its key, and its network by the name of its group."""
    flat = flatten(base)
    flat["model"] = base.model.name
    return flat


def baseline(dimensions: Sequence[Dimension], base: Config) -> tuple[Params, list[str]]:
    """Express the hand-set config in the dimensions of a space.

    Args:
        dimensions: The space, conditions first.
        base: The hand-set config.

    Returns:
        Its params, and the keys whose value lies outside the space.
    """
    flat = flat_values(base)
    params: Params = {}
    outside: list[str] = []
    for dimension in dimensions:
        if not dimension.is_active(params):
            continue
        if dimension.contains(flat.get(dimension.key)):
            params[dimension.key] = flat[dimension.key]
        else:
            outside.append(dimension.key)
    return params, outside


def parse_start(
    raw: Sequence[Any], dimensions: Sequence[Dimension], overrides: Sequence[str], base: Config
) -> list[Params]:
    """Check the configurations that a person wants to be tried first.

    Args:
        raw: Mappings of a searched key to its value. Keys that are left out are sampled.
        dimensions: The space, conditions first.
        overrides: Overrides of the study as typed.
        base: The run that is varied.

    Returns:
        Their params, in the types of the space.

    Raises:
        StudyError: With everything that is wrong: keys and values outside the space, keys that do
            not matter, and combinations that cannot be trained.
    """
    points: list[Params] = []
    problems: list[str] = []
    for number, entry in enumerate(raw, start=1):
        where = f"`search.start` configuration {number}"
        found = list(_start_problems(entry, dimensions))
        if not found:
            point = _in_types_of(entry, dimensions)
            found = list(_combination_problems(point, overrides, base))
            points.append(point)
        problems += [f"{where} {problem}" for problem in found]
    raise_violations(problems)
    return points


def _start_problems(entry: Any, dimensions: Sequence[Dimension]) -> Iterator[str]:
    if not isinstance(entry, Mapping) or not entry:
        yield f"must be values by searched key, {{model.filters: 32}}, got {entry!r}"
        return
    known = {dimension.key: dimension for dimension in dimensions}
    for key, value in entry.items():
        dimension = known.get(key)
        if dimension is None:
            suggestion = nearest(str(key), known)
            yield f"must have keys that are searched, got {key!r}{suggestion}"
        elif not dimension.contains(value):
            names = [str(choice) for choice in dimension.choices]
            rule = f"must lie in the space: `{key}` is {dimension.values}"
            suggestion = nearest(str(value), names)
            yield f"{rule}, got {value!r}{suggestion}"
        elif not dimension.is_active(entry):
            condition = dimension.condition
            yield f"gives `{key}`, which is searched only when {condition}: give that too"


def _combination_problems(point: Params, overrides: Sequence[str], base: Config) -> Iterator[str]:
    try:
        apply(point, overrides, base)
    except StudyError as error:
        yield f"cannot be trained: {error}"


def _in_types_of(entry: Mapping[str, Any], dimensions: Sequence[Dimension]) -> Params:
    """Return values that a space contains in its own types: 1 as 1.0 in a range of floats."""
    point: Params = {}
    for dimension in dimensions:
        if dimension.key not in entry:
            continue
        value = entry[dimension.key]
        if dimension.kind == "categorical":
            position = dimension.choices.index(value)
            value = dimension.choices[position]
        else:
            number = NUMBER_TYPES[dimension.kind]
            value = number(value)
        point[dimension.key] = value
    return point


def grid(dimensions: Sequence[Dimension]) -> list[Params] | None:
    """List all distinct configurations in order; None where a range is continuous."""
    grids: list[tuple[Any, ...]] = []
    for dimension in dimensions:
        values = dimension.grid()
        if values is None:
            return None
        grids.append(values)
    points: dict[str, Params] = {}
    for point in product(*grids):
        params: Params = {}
        for dimension, value in zip(dimensions, point, strict=True):
            if dimension.is_active(params):
                params[dimension.key] = value
        points[fingerprint(params)] = params
    return list(points.values())


def apply(params: Mapping[str, Any], base_overrides: Sequence[str], base: Config) -> Config:
    """Make the run that params stand for.

    Args:
        params: Values by config key, and options by config group.
        base_overrides: Overrides of the study as typed; they hold in the options of a group too.
        base: The resolved run that is varied.

    Returns:
        The run, validated.

    Raises:
        StudyError: If the combination breaks a rule.
    """
    options: Params = {}
    values: Params = {}
    for key, value in params.items():
        if key in GROUPS:
            options[key] = value
        else:
            values[key] = value
    if options:
        base = _with_options(base, options, base_overrides)
    config = with_values(base, values)
    config.validate()
    return config


def _with_options(
    base: Config, options: Mapping[str, Any], base_overrides: Sequence[str]
) -> Config:
    """Replace whole groups of a run by their options; raises StudyError."""
    chosen = [f"{group}={option}" for group, option in options.items()]
    composed = compose.compose_config([*base_overrides, *chosen], "study", recorded=True)
    for group in options:
        option = getattr(composed, group)
        resolved = _with_resolved(option, base)
        base = dataclasses.replace(base, **{group: resolved})
    return base


def _with_resolved(option: Any, base: Config) -> Any:
    """Give a recipe the precision and the threads that were resolved once for the whole study."""
    if not isinstance(option, TrainingConfig):
        return option
    precision = option.precision
    if precision == "auto":
        precision = base.training.precision
    threads = option.threads or base.training.threads
    return dataclasses.replace(option, precision=precision, threads=threads)


def parse_space(raw: Mapping[str, Any], base: Config) -> list[Dimension]:
    """Check a space and order it so that conditions come first.

    Args:
        raw: A mapping as in ``conf/search/space/*.yaml``.
        base: The run that is varied. Every end of every range must be valid in it.

    Returns:
        The dimensions.

    Raises:
        StudyError: With everything that is wrong.
    """
    if not raw:
        rule = "`search.space` must name at least one key to search"
        raise StudyError(f"{rule}, got none: take search/space=default")
    problems: list[str] = []
    known = searchable_keys()
    for key, entry in raw.items():
        problems += _entry_problems(key, entry, known)
    raise_violations(problems)
    dimensions = {key: _dimension(key, entry) for key, entry in raw.items()}
    for dimension in dimensions.values():
        problems += _when_problems(dimension, dimensions, base)
    raise_violations(problems)
    for key, dimension in dimensions.items():
        # a condition on a key that is not searched holds: it was just checked
        when = {name: values for name, values in dimension.when.items() if name in dimensions}
        dimensions[key] = dataclasses.replace(dimension, when=when)
    ordered = _ordered(list(dimensions.values()))
    for dimension in ordered:
        problems += _value_problems(dimension, dimensions, base)
    raise_violations(problems)
    return ordered


def _entry_problems(key: str, entry: Any, known: Sequence[str]) -> Iterator[str]:
    where = f"`search.space` key `{key}`"
    if key not in known:
        suggestion = nearest(key, known)
        yield f"{where} is no config key that can be searched{suggestion}"
        return
    if not isinstance(entry, Mapping) or not entry:
        yield f"{where} must have choices, or low and high, got {entry!r}"
        return
    unknown = [name for name in entry if name not in FIELDS]
    for name in unknown:
        fields = ", ".join(FIELDS)
        suggestion = nearest(str(name), FIELDS)
        yield f"{where} must have fields from {fields}, got {name!r}{suggestion}"
    kind = entry.get("type", "int")
    if kind not in KINDS:
        yield f"{where} must be of type categorical, int or float, got {kind!r}"
    elif "choices" in entry or kind == "categorical":
        for problem in _choices_problems(entry):
            yield f"{where} {problem}"
    elif range_problem := _range_problem(entry):
        yield f"{where} {range_problem}"
    conditions = entry.get("when") or {}
    for problem in _condition_problems(conditions):
        yield f"{where}: {problem}"


def _condition_problems(conditions: Any) -> Iterator[str]:
    if not isinstance(conditions, Mapping):
        rule = "`when` must map a key to the values under which this key matters"
        yield f"{rule}, got {conditions!r}"
        return
    for condition, allowed in conditions.items():
        if not isinstance(allowed, list) or not allowed:
            rule = f"`when` must list the values of `{condition}` under which it matters"
            yield f"{rule}, got {allowed!r}"


def _choices_problems(entry: Mapping[str, Any]) -> Iterator[str]:
    range_fields = sorted(set(RANGE_FIELDS) & set(entry))
    if range_fields:
        named = ", ".join(range_fields)
        yield f"takes either choices or a range, got choices and {named}: drop one"
    choices = entry.get("choices")
    if not isinstance(choices, list) or not choices:
        yield f"must have at least one choice, got {choices!r}"
        return
    distinct = {str(choice) for choice in choices}
    if len(distinct) < len(choices):
        yield f"must have each choice once, got {choices!r}"


def _range_problem(entry: Mapping[str, Any]) -> str | None:
    shown = repr(dict(entry))
    low = entry.get("low")
    high = entry.get("high")
    step = entry.get("step")
    if low is None or high is None:
        return f"must have choices, or low and high, got {shown}"
    numbers = [low, high]
    if step is not None:
        numbers.append(step)
    if not all(_is_finite_number(number) for number in numbers):
        return f"must have finite numbers as low, high and step, got {shown}"
    if low > high:
        return f"must have low ≤ high, got low {low} and high {high}"
    kind = entry.get("type", "int")
    are_whole = all(number == int(number) for number in numbers)
    if kind == "int" and not are_whole:
        return f"must have whole numbers, got {shown}: give type: float for others"
    if step is not None and step <= 0:
        return f"must have a step greater than 0, got {step}"
    is_log = entry.get("log")
    if not isinstance(is_log, bool | None):
        return f"must have log: true or log: false, got {is_log!r}: write it without quotes"
    if is_log and low <= 0:
        return f"must have low greater than 0 with log: true, got {low}"
    if is_log and step is not None:
        return "takes either log or step, got both: drop one"
    return None


def _is_finite_number(value: Any) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return math.isfinite(value)


def _dimension(key: str, entry: Mapping[str, Any]) -> Dimension:
    conditions = entry.get("when") or {}
    when = {name: tuple(allowed) for name, allowed in conditions.items()}
    if "choices" in entry:
        choices = tuple(entry["choices"])
        return Dimension(key, "categorical", choices=choices, when=when)
    kind = entry.get("type", "int")
    number = NUMBER_TYPES[kind]
    low = number(entry["low"])
    high = number(entry["high"])
    step = entry.get("step")
    if step is None and kind == "int":
        step = 1
    if step is not None:
        step = number(step)
        # the last value that the steps reach
        steps = _whole_steps(low, high, step)
        last = low + steps * step
        high = number(round(last, STEP_DIGITS))
    return Dimension(
        key,
        kind,
        low=low,
        high=high,
        step=step,
        log=bool(entry.get("log")),
        when=when,
    )


def _whole_steps(low: float, high: float, step: float) -> int:
    """Count the steps that fit between the ends of a range."""
    steps = (high - low) / step
    return math.floor(steps + STEP_TOLERANCE)


def _when_problems(
    dimension: Dimension, dimensions: Mapping[str, Dimension], base: Config
) -> Iterator[str]:
    """Yield what is wrong with the conditions of a dimension.

    A searched key must be able to take each value; any other key must have one of them.
    """
    flat = flat_values(base)
    for key, allowed in dimension.when.items():
        where = f"`search.space` key `{dimension.key}` has a `when` on `{key}`"
        group, _, _ = key.partition(".")
        if key in dimensions:
            for value, suggestion in _impossible_values(dimensions[key], allowed):
                yield f"{where}, which is never {value!r}{suggestion}"
        elif group in dimensions:
            remedy = f"give its options, when: {{{group}: [...]}}"
            yield f"{where}, which the searched group `{group}` decides: {remedy}"
        elif key not in flat:
            suggestion = nearest(key, flat)
            yield f"{where}, which is no config key{suggestion}"
        elif flat[key] not in allowed:
            values = " or ".join(str(value) for value in allowed)
            remedy = f"search it too, set it, or leave `{dimension.key}` out"
            yield f"{where} being {values}, but it is {flat[key]} and not searched: {remedy}"


def _impossible_values(dimension: Dimension, values: Sequence[Any]) -> Iterator[tuple[Any, str]]:
    """Yield the values that a dimension never takes, each with the nearest that it takes."""
    names = [str(choice) for choice in dimension.choices]
    for value in values:
        if not dimension.contains(value):
            yield value, nearest(str(value), names)


def _value_problems(
    dimension: Dimension, dimensions: Mapping[str, Dimension], base: Config
) -> Iterator[str]:
    """Yield a sentence if an end of a range breaks a rule under any of its conditions."""
    contexts = _contexts(dimension, dimensions)
    for value, context in product(dimension.ends(), contexts):
        params = {**context, dimension.key: value}
        try:
            apply(params, [], base)
        except StudyError as error:
            given = ""
            if context:
                others = ", ".join(f"{key}={used}" for key, used in context.items())
                given = f" with {others}"
            yield f"`search.space` key `{dimension.key}` reaches {value!r}{given}: {error}"
            return


def _contexts(dimension: Dimension, dimensions: Mapping[str, Dimension]) -> list[Params]:
    """List the combinations of other keys under which a dimension matters."""
    conditions = _conditions(dimension, dimensions)
    group, _, _ = dimension.key.partition(".")
    if group in dimensions and group != dimension.key:
        options = dimensions[group].choices
        conditions.setdefault(group, options)
    contexts: list[Params] = []
    for values in product(*conditions.values()):
        context = dict(zip(conditions, values, strict=True))
        contexts.append(context)
    return contexts


def _conditions(
    dimension: Dimension, dimensions: Mapping[str, Dimension]
) -> dict[str, tuple[Any, ...]]:
    """Return the conditions of a dimension, after those under which they can hold."""
    conditions: dict[str, tuple[Any, ...]] = {}
    for key in dimension.when:
        conditions.update(_conditions(dimensions[key], dimensions))
    conditions.update(dimension.when)
    return conditions


def _ordered(dimensions: list[Dimension]) -> list[Dimension]:
    """Put conditions first and keep the order of the rest; raises StudyError for a circle."""
    ordered: list[Dimension] = []
    waiting = list(dimensions)
    while waiting:
        known = {dimension.key for dimension in ordered}
        ready = [dimension for dimension in waiting if set(dimension.when) <= known]
        if not ready:
            first = waiting[0]
            conditions = ", ".join(first.when)
            where = f"`search.space` key `{first.key}` has a `when` on {conditions}"
            raise StudyError(f"{where}, and so on itself")
        ordered.append(ready[0])
        waiting.remove(ready[0])
    return ordered
