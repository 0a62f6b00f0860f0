"""Rules for values, and the old address of errors, redaction and suggestions until callers move."""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

from digit_study.support.errors import StudyError as StudyError
from digit_study.support.errors import find_unwritable as unwritable
from digit_study.support.errors import first_line as first_line
from digit_study.support.errors import is_infrastructure_error as is_infrastructure_fault
from digit_study.support.redaction import without_password as without_password
from digit_study.support.redaction import without_secrets as without_secrets
from digit_study.support.suggestions import nearest as nearest
from digit_study.support.suggestions import short_names as short_names

__all__ = [
    "StudyError",
    "first_line",
    "is_infrastructure_fault",
    "nearest",
    "short_names",
    "unwritable",
    "without_password",
    "without_secrets",
]


@dataclass(frozen=True)
class Rule:
    """What a value must be, in words and as a test; ``choices`` are the names to suggest from."""

    text: str
    holds: Callable[[Any], bool]
    choices: tuple[str, ...] = ()

    def violation(self, key: str, value: Any) -> str | None:
        """One sentence if ``value`` breaks the rule; None passes, for the schema says where it is allowed."""
        if value is None or self.holds(value):
            return None
        return f"`{key}` must be {self.text}, got {value!r}{nearest(str(value), self.choices)}"


def choice(allowed: Iterable[str]) -> Rule:
    """A value is one of ``allowed``."""
    names = tuple(allowed)
    return Rule(f"one of {', '.join(names)}", lambda value: value in names, names)


def at_least(low: int) -> Rule:
    """A number is ``low`` or more."""
    return Rule(f"at least {low}", lambda value: low <= value < math.inf)


def between(low: float, high: float, ends: str = "[]") -> Rule:
    """A number lies in [low, high], without an end that is written as a round bracket in ``ends``."""
    has_low, has_high = ends[0] == "[", ends[1] == "]"

    def holds(value: float) -> bool:
        return low <= value <= high and (has_low or value != low) and (has_high or value != high)

    inside = f"in [{low:.10g}, {high:.10g}{ends[1]}"
    return Rule(inside if has_low else f"greater than {low:g} and at most {high:g}", holds)


def listed(values: Mapping[str, Any]) -> str:
    """``{cpu: 4, gpu: 0.25}``: a flat mapping of numbers as a person types it, without zeros."""
    return "{" + ", ".join(f"{key}: {value:g}" for key, value in values.items() if value) + "}"


def flatten(config: Any, prefix: str = "") -> dict[str, Any]:
    """Every leaf of a config dataclass by its dotted key, in order of declaration."""
    flat: dict[str, Any] = {}
    for entry in fields(config):
        value, key = getattr(config, entry.name), f"{prefix}{entry.name}"
        flat.update(flatten(value, f"{key}.") if is_dataclass(value) else {key: value})
    return flat


def check(config: Any, rules: Mapping[str, Rule], others: Iterable[str]) -> None:
    """Raise StudyError with every leaf of a config dataclass that breaks its rule, and ``others`` that are wrong."""
    values = flatten(config)
    broken = (rule.violation(key, values.get(key)) for key, rule in rules.items())
    raise_violations([*filter(None, broken), *others])


def raise_violations(sentences: Iterable[str]) -> None:
    """Raise all sentences as one StudyError, or nothing where there are none."""
    if message := "\n".join(sentences):
        raise StudyError(message)
