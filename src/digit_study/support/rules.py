"""Settings as fields of frozen dataclasses, each with its rule beside it in one line.

``filters: Annotated[int, between(1, 1024)] = 32`` is a setting: its name, its type, its rule and
its default. The type is checked when a config is composed, the rule by :func:`check`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass, replace
from functools import cache
from types import NoneType
from typing import Annotated, Any, TypeVar, get_args, get_origin, get_type_hints

from digit_study.support.errors import StudyError
from digit_study.support.suggestions import nearest

ConfigType = TypeVar("ConfigType")


@dataclass(frozen=True)
class Rule:
    """What a value must be.

    Attributes:
        text: The rule in words, as they follow "must be".
        holds: Tells whether a value keeps the rule.
        choices: Names to suggest the nearest from when the rule is broken.
    """

    text: str
    holds: Callable[[Any], bool]
    choices: tuple[str, ...] = ()

    def violation(self, key: str, value: Any) -> str | None:
        """Say in one sentence how ``value`` breaks the rule.

        Args:
            key: Dotted key of the setting.
            value: Its value. None always passes: the type says whether None is allowed.

        Returns:
            The rule, the value and the nearest choice; None if the rule is kept.
        """
        if value is None or self.holds(value):
            return None
        suggestion = nearest(str(value), self.choices)
        return f"`{key}` must be {self.text}, got {value!r}{suggestion}"


def choice(allowed: Iterable[str]) -> Rule:
    """Make the rule that a value is one of the names ``allowed``."""
    names = tuple(allowed)
    listed = ", ".join(names)
    return Rule(f"one of {listed}", lambda value: value in names, names)


def at_least(low: int) -> Rule:
    """Make the rule that a number is ``low`` or more, and finite."""

    def holds(value: float) -> bool:
        return low <= value < math.inf

    return Rule(f"at least {low}", holds)


def between(low: float, high: float, ends: str = "[]") -> Rule:
    """Make the rule that a number lies between two others.

    Args:
        low: Lower end.
        high: Upper end.
        ends: Brackets of the interval; a round one excludes its end.

    Returns:
        The rule. It is broken by NaN.
    """
    includes_low = ends[0] == "["
    includes_high = ends[1] == "]"

    def holds(value: float) -> bool:
        if value == low:
            return includes_low
        if value == high:
            return includes_high
        return low < value < high

    if includes_low:
        return Rule(f"in [{low:.10g}, {high:.10g}{ends[1]}", holds)
    return Rule(f"greater than {low:g} and at most {high:g}", holds)


@cache
def rules_of(schema: type) -> dict[str, Rule]:
    """Collect the rules that stand beside the fields of a config dataclass.

    Args:
        schema: A dataclass; its fields may be dataclasses themselves.

    Returns:
        Rules by dotted key, in order of declaration, for the fields that have one.
    """
    rules: dict[str, Rule] = {}
    for key, hint in _hints_of(schema).items():
        for item in get_args(hint):
            if isinstance(item, Rule):
                rules[key] = item
    return rules


def types_of(schema: type) -> dict[str, type]:
    """Collect the types of the settings of a config dataclass.

    Args:
        schema: A dataclass; its fields may be dataclasses themselves.

    Returns:
        Types by dotted key; of a setting that may be None, what else it is.
    """
    return {key: _options_of(hint)[0] for key, hint in _hints_of(schema).items()}


@cache
def _hints_of(schema: type) -> dict[str, Any]:
    """Return the annotations of all settings by dotted key.

    To evaluate them takes a trial's milliseconds.
    """
    found: dict[str, Any] = {}
    hints = get_type_hints(schema, include_extras=True)
    for entry in fields(schema):
        hint = hints[entry.name]
        if is_dataclass(hint):
            inner = _hints_of(hint)  # type: ignore[arg-type]
            found.update({f"{entry.name}.{key}": deeper for key, deeper in inner.items()})
        else:
            found[entry.name] = hint
    return found


def _options_of(hint: Any) -> tuple[Any, ...]:
    """Return the types that an annotation allows; that of None is the last."""
    if get_origin(hint) is Annotated:
        hint = get_args(hint)[0]
    return get_args(hint) or (hint,)


def check(config: Any, rules: Mapping[str, Rule], others: Iterable[str]) -> None:
    """Check a config and report everything that is wrong at once.

    Args:
        config: A config dataclass.
        rules: Rules of single values by dotted key, usually :func:`rules_of` its class.
        others: Sentences about values that do not go together.

    Raises:
        StudyError: With a line for each broken rule, then ``others``.
    """
    values = flatten(config)
    violations: list[str] = []
    for key, rule in rules.items():
        violation = rule.violation(key, values.get(key))
        if violation:
            violations.append(violation)
    violations.extend(others)
    raise_violations(violations)


class Validated:
    """A config dataclass that is checked as a whole."""

    def validate(self) -> None:
        """Check every rule.

        Raises:
            StudyError: With every rule that is broken.
        """
        schema: type = type(self)
        check(self, rules_of(schema), self._relation_violations())

    def _relation_violations(self) -> Iterator[str]:
        """Yield a sentence for each group of values that do not go together."""
        raise NotImplementedError


def flatten(config: Any, prefix: str = "") -> dict[str, Any]:
    """List every setting of a config dataclass.

    Args:
        config: A config dataclass; its fields may be dataclasses themselves.
        prefix: What all keys begin with.

    Returns:
        Values by dotted key, in order of declaration.
    """
    flat: dict[str, Any] = {}
    for entry in fields(config):
        value = getattr(config, entry.name)
        key = f"{prefix}{entry.name}"
        if is_dataclass(value):
            flat.update(flatten(value, f"{key}."))
        else:
            flat[key] = value
    return flat


def with_values(config: ConfigType, values: Mapping[str, Any]) -> ConfigType:
    """Copy a config dataclass with some settings replaced.

    Args:
        config: A config dataclass.
        values: New values by dotted key. An integer becomes a float where the setting is one.

    Returns:
        The copy.

    Raises:
        StudyError: If a value is not of the type of its setting.
    """
    hints = _hints_of(type(config))  # type: ignore[arg-type]
    for key, value in values.items():
        converted = _converted(key, value, hints[key])
        config = _with_value(config, key.split("."), converted)
    return config


def _with_value(config: Any, names: list[str], value: Any) -> Any:
    name, *inner = names
    if inner:
        value = _with_value(getattr(config, name), inner, value)
    return replace(config, **{name: value})


def _converted(key: str, value: Any, hint: Any) -> Any:
    """Return ``value`` as the type ``hint`` wants it; True and False are of no type but bool."""
    options = _options_of(hint)
    if value is None and NoneType in options:
        return None
    kind = options[0]
    is_of_kind = isinstance(value, kind)
    if kind is float:
        is_of_kind = isinstance(value, int | float)
    # Python takes True and False for integers
    is_bool = isinstance(value, bool)
    wants_bool = kind is bool
    if not is_of_kind or is_bool != wants_bool:
        got = f"got {value!r} of type {type(value).__name__}"
        raise StudyError(f"`{key}` must be of type {kind.__name__}, {got}")
    if kind is float:
        return float(value)
    return value


def raise_violations(sentences: Iterable[str]) -> None:
    """Raise all sentences as one StudyError, or nothing where there are none."""
    message = "\n".join(sentences)
    if message:
        raise StudyError(message)
