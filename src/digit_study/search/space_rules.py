"""What a search space must be: every key, every end of every range and every condition, checked before a start."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from typing import Any

from digit_study.config.run import RULES, Config, complaint, flatten
from digit_study.search.space import GROUPS, Dimension, Params, apply, flat_values, with_values
from digit_study.terminal.errors import StudyError
from digit_study.terminal.naming import nearest

SEARCHABLE = ("data.limit", "model.", "training.")
FIELDS = ("type", "low", "high", "step", "log", "choices", "when")


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
    dimensions = {key: _dimension(key, entry) for key, entry in raw.items()}
    complaint("\n".join(flaw for one in dimensions.values() for flaw in _when_flaws(one, dimensions, base)))
    fixed = {key for one in dimensions.values() for key in one.when} - dimensions.keys()
    dimensions = {key: _without_conditions(one, fixed) for key, one in dimensions.items()}
    ordered = _ordered(list(dimensions.values()))
    complaint("\n".join(flaw for one in ordered for flaw in _value_flaws(one, dimensions, base, root)))
    return ordered


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
    conditions = entry.get("when") or {}
    if not isinstance(conditions, Mapping):
        yield f"{where}: `when` must map a key to the values under which this one matters, got {conditions!r}"
        return
    for condition, allowed in conditions.items():
        if not isinstance(allowed, list) or not allowed:
            yield f"{where}: `when` must list the values of `{condition}` under which it matters, got {allowed!r}"


def _choice_flaws(where: str, entry: Mapping[str, Any]) -> Iterator[str]:
    choices = entry.get("choices")
    if extra := sorted({"low", "high", "step", "log"} & set(entry)):
        yield f"{where} takes either choices or a range, got choices and {', '.join(extra)}: drop one"
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
    kind, step = entry.get("type", "int"), entry.get("step")
    number = float if kind == "float" else int
    low, high = number(entry["low"]), number(entry["high"])
    if step is not None:  # the last value that the steps reach
        high = number(round(low + math.floor((high - low) / step + 1e-9) * step, 12))
    return Dimension(key, kind, low=low, high=high, step=step, log=bool(entry.get("log")), when=when)


def _when_flaws(one: Dimension, dimensions: Mapping[str, Dimension], base: Config) -> Iterator[str]:
    """What is wrong with its conditions: on a key that is searched each value must be possible, on another it holds."""
    for key, allowed in one.when.items():
        where = f"`search.space` key `{one.key}` has a `when` on `{key}`"
        if key in dimensions:
            for value in (value for value in allowed if not dimensions[key].contains(value)):
                yield f"{where}, which is never {value!r}{nearest(str(value), map(str, dimensions[key].choices))}"
        elif (group := key.split(".")[0]) in dimensions:
            yield f"{where}, which the searched group `{group}` decides: give its options, when: {{{group}: [...]}}"
        elif key not in (flat := flat_values(base)):
            yield f"{where}, which is no config key{nearest(key, flat)}"
        elif flat[key] not in allowed:
            yield (
                f"{where} being {' or '.join(map(str, allowed))}, but it is {flat[key]} and not searched: "
                f"search it too, set it, or leave `{one.key}` out"
            )


def _without_conditions(one: Dimension, held: set[str]) -> Dimension:
    return dataclasses.replace(one, when={key: values for key, values in one.when.items() if key not in held})


def _value_flaws(one: Dimension, dimensions: Mapping[str, Dimension], base: Config, root: str) -> Iterator[str]:
    """One sentence for every end of a range that the config's own rules refuse where it is used."""
    for value, context in product(one.ends(), _contexts(one, dimensions)):
        try:
            _check_leaf(one.key, value, base)
            apply({**context, one.key: value}, [], base, root)
        except StudyError as error:
            told = " with " + ", ".join(f"{key}={used}" for key, used in context.items()) if context else ""
            yield f"`search.space` key `{one.key}` reaches {value!r}{told}: {error}"
            return


def _contexts(one: Dimension, dimensions: Mapping[str, Dimension]) -> list[Params]:
    """All combinations of its conditions, of theirs, and of the options of groups that it belongs to."""
    used = dict(one.when)
    for key in one.when:
        used = {**dimensions[key].when, **used}
    group = one.key.split(".")[0]
    if group in dimensions and group != one.key:
        used.setdefault(group, dimensions[group].choices)
    return [dict(zip(used, values, strict=True)) for values in product(*used.values())]


def _check_leaf(key: str, value: Any, base: Config) -> None:
    if key in GROUPS:
        return
    with_values(base, {key: value})
    rule = RULES.get(key)
    if rule is not None and value is not None and not rule.holds(value):
        raise StudyError(f"`{key}` must be {rule.text}, got {value!r}{nearest(str(value), rule.choices)}")


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
                f"`search.space` key `{stuck.key}` has a `when` on {', '.join(stuck.when)}, and so on itself"
            )
        ordered.append(ready[0])
        left.remove(ready[0])
    return ordered
