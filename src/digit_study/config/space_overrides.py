"""The search space on a command line: swept keys, and single keys of ``search.space``.

``model.filters=choice(8,16)`` sweeps a key, in Hydra's own grammar. ``search.space.<key>=…`` sets
a single key of a space. :func:`typed_space` has the rule for both.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Any

from hydra.core.override_parser.types import (
    ChoiceSweep,
    IntervalSweep,
    Override,
    QuotedString,
    RangeSweep,
    Sweep,
)

from digit_study.config.run_config import Config
from digit_study.support.errors import StudyError
from digit_study.support.redaction import without_password
from digit_study.support.rules import flatten, types_of
from digit_study.support.suggestions import nearest

#: Key of a study's config that holds the space.
SPACE = "search.space"
#: Config group of the files that hold a space.
SPACE_GROUP = "search/space"
#: Config groups that can be searched as a whole, by the names of their options.
GROUPS = ("model", "training")
#: What the keys that can be searched begin with.
SEARCHABLE = ("data.limit", "model.", "training.")
#: Fields of an entry of a space.
FIELDS = ("type", "low", "high", "step", "log", "choices", "when")
#: The only tag of a sweep that means something: values are spread evenly in the logarithm.
LOG_TAG = "log"


def is_of_space(override: Override) -> bool:
    """Return whether an override is about the space: a sweep, or a single key of the space."""
    return _is_single_key(override) or _is_sweep(override)


def sweeps_of(overrides: Sequence[Override]) -> list[Override]:
    """Return the overrides that sweep a key of a run."""
    sweeps: list[Override] = []
    for override in overrides:
        if _is_sweep(override) and not _is_single_key(override):
            sweeps.append(override)
    return sweeps


def has_nested_sweep(sweep: ChoiceSweep) -> bool:
    """Return whether a choice has a sweep among its values, which Hydra never expands."""
    return any(isinstance(element, Sweep) for element in sweep.list)


def typed_space(space_of_files: Mapping[str, Any], overrides: Sequence[Override]) -> dict[str, Any]:
    """Return the space that a command line asks for.

    The rule: swept keys replace the space of the files as a whole, so that what is typed is what
    is searched; a default space of ten keys would otherwise come along unasked. Then every
    ``search.space.<key>=…`` sets, or with null drops, a single key of the space, so that the space
    of a file can be changed without being typed again.

    Args:
        space_of_files: The space of the config files, or of a typed ``search.space={…}``.
        overrides: All overrides of the command line.

    Returns:
        A space as :func:`digit_study.config.space.parse_space` takes it, which checks its values.

    Raises:
        StudyError: For a sweep of a key that cannot be searched, for a sweep that is no dimension,
            and for two spaces at once.
    """
    space = dict(space_of_files)
    sweeps = sweeps_of(overrides)
    if sweeps:
        space = {sweep.key_or_group: _swept_dimension(sweep) for sweep in sweeps}
        _check_single_space(sweeps[0], overrides)
    for override in overrides:
        if _is_single_key(override):
            _set_key(space, override)
    return space


def origin_of(overrides: Sequence[Override]) -> str:
    """Say where the space of a command line comes from, see :func:`typed_space`."""
    origin = "files of search/space"
    if sweeps_of(overrides):
        origin = "keys swept on the command line, in place of the files of search/space"
    elif any(override.key_or_group == SPACE for override in overrides):
        origin = f"{SPACE} on the command line"
    single = [override.key_or_group for override in overrides if _is_single_key(override)]
    if single:
        origin += f"; changed by {', '.join(single)}"
    return origin


def searchable_keys() -> list[str]:
    """List the keys and the groups that can be searched."""
    keys = [key for key in flatten(Config()) if key.startswith(SEARCHABLE)]
    return [*GROUPS, *keys]


def _is_single_key(override: Override) -> bool:
    return override.key_or_group.startswith(f"{SPACE}.")


def _is_sweep(override: Override) -> bool:
    return override.is_sweep_override() and not override.is_delete()


def _check_single_space(sweep: Override, overrides: Sequence[Override]) -> None:
    """Raise StudyError if a whole space is typed beside a swept key, which would replace it."""
    for override in overrides:
        if override.key_or_group in (SPACE, SPACE_GROUP):
            got = f"got {shown_override(override)!r} beside {shown_override(sweep)!r}"
            remedy = f"give {SPACE}.{sweep.key_or_group}=… to change a key of that space"
            raise StudyError(f"swept keys are the whole space, {got}: drop it, or {remedy}")


def _set_key(space: dict[str, Any], override: Override) -> None:
    """Set, or drop, what ``search.space.<key>`` or ``search.space.<key>.<field>`` names."""
    key = override.key_or_group.removeprefix(f"{SPACE}.")
    holder, _, field = key.rpartition(".")
    if field in FIELDS:
        _set_field(space, holder, field, override)
    elif _is_sweep(override):
        space[key] = _swept_dimension(override, key)
    elif override.is_delete() or override.value() is None:
        _drop_key(space, key, override)
    else:
        space[key] = override.value()


def _drop_key(space: dict[str, Any], key: str, override: Override) -> None:
    """Drop a key of a space; raises StudyError if it has no such key."""
    if key not in space:
        known = ", ".join(space)
        rule = f"`{SPACE}` has no key `{key}` to drop"
        raise StudyError(f"{rule}, got {shown_override(override)!r}: it has {known}")
    del space[key]


def _set_field(space: dict[str, Any], key: str, field: str, override: Override) -> None:
    """Set a field of a key, such as ``high``."""
    entry = space.get(key)
    if not isinstance(entry, Mapping):
        known = ", ".join(space)
        rule = f"`{SPACE}` has no key `{key}` whose `{field}` could be set"
        raise StudyError(f"{rule}, got {shown_override(override)!r}: it has {known}")
    if override.is_sweep_override() or override.is_delete():
        rule = f"`{SPACE}.{key}.{field}` takes one value"
        raise StudyError(f"{rule}, got {shown_override(override)!r}: give a value")
    value = override.value()
    space[key] = {**entry, field: value}


def _swept_dimension(override: Override, key: str | None = None) -> dict[str, Any]:
    """Return the entry of a space that a sweep stands for.

    Args:
        override: The sweep.
        key: The key that is searched; None: the key of the override.
    """
    key = key or override.key_or_group
    _check_searchable(override, key)
    sweep = override.value()
    _check_tags(override, key, sweep)
    match sweep:
        case ChoiceSweep(shuffle=False):
            return {"choices": _choices(override, key, sweep)}
        case RangeSweep(shuffle=False):
            return _stepped_range(override, key, sweep)
        case IntervalSweep():
            return _interval(key, sweep)
    rule = f"`{key}` is searched by a,b,c, choice(…), range(…) or interval(…)"
    remedy = f"list its values, {key}=a,b,c; the sampler decides on their order"
    raise StudyError(f"{rule}, got {shown_override(override)!r}: {remedy}")


def _check_searchable(override: Override, key: str) -> None:
    """Raise StudyError for a sweep of a key that cannot be searched."""
    known = searchable_keys()
    if key in known:
        return
    shown = shown_override(override)
    group, _, _ = key.partition(".")
    has_searched_group = group in ("data", *GROUPS)
    if has_searched_group or nearest(group, GROUPS):
        suggestion = nearest(key, known)
        rule = f"`{key}` is no config key that can be searched"
        raise StudyError(f"{rule}, got {shown!r}{suggestion}")
    searched = "only data.limit and the keys of model and training are searched"
    raise StudyError(f"`{key}` takes one value, got the sweep {shown!r}: {searched}")


def _check_tags(override: Override, key: str, sweep: Any) -> None:
    """Raise StudyError for a tag that would be ignored."""
    tags: set[str] = getattr(sweep, "tags", set())
    allowed: set[str] = set()
    if isinstance(sweep, RangeSweep | IntervalSweep):
        allowed = {LOG_TAG}
    if tags <= allowed:
        return
    rule = f"`{key}` may have the tag log, on a range or an interval"
    remedy = f"write {key}='tag(log, interval(low, high))', or drop the tag"
    raise StudyError(f"{rule}, got {shown_override(override)!r}: {remedy}")


def _choices(override: Override, key: str, sweep: ChoiceSweep) -> list[Any]:
    if has_nested_sweep(sweep):
        rule = f"`{key}` must list its choices in one place"
        raise StudyError(f"{rule}, got {shown_override(override)!r}: write {key}=a,b,c")
    choices: list[Any] = []
    for element in sweep.list:
        if isinstance(element, QuotedString):
            element = element.text
        choices.append(element)
    return choices


def _stepped_range(override: Override, key: str, sweep: RangeSweep) -> dict[str, Any]:
    """Return the entry of a range, whose stop is excluded as in Python and with -m."""
    # decimals, since 0.1 + 0.2 is 0.3 for a person
    start = Decimal(str(sweep.start))
    stop = Decimal(str(sweep.stop))
    step = Decimal(str(sweep.step))
    count = _count_values(start, stop, step)
    if count < 1:
        rule = f"`{key}` must have a range with a value or more"
        remedy = f"write {key}='range(start,stop,step)', where stop is excluded"
        raise StudyError(f"{rule}, got {shown_override(override)!r}: {remedy}")
    last = start + (count - 1) * step
    low = min(start, last)
    high = max(start, last)
    kind = "float"
    number: type[int] | type[float] = float
    are_whole = all(isinstance(end, int) for end in (sweep.start, sweep.stop, sweep.step))
    if are_whole and types_of(Config).get(key) is not float:
        kind = "int"
        number = int
    entry: dict[str, Any] = {
        "type": kind,
        "low": number(low),
        "high": number(high),
    }
    is_plain = kind == "int" and abs(step) == 1
    if count > 1 and not is_plain:
        entry["step"] = number(abs(step))
    return _with_log(entry, sweep)


def _count_values(start: Decimal, stop: Decimal, step: Decimal) -> int:
    """Count the values of a range; 0 or less if it has none, 0 if it has no end."""
    are_finite = start.is_finite() and stop.is_finite() and step.is_finite()
    if not step or not are_finite:
        return 0
    return math.ceil((stop - start) / step)


def _interval(key: str, sweep: IntervalSweep) -> dict[str, Any]:
    """Return the entry of an interval, which has both its ends; Hydra reads them as floats."""
    kind = "float"
    low = sweep.start
    high = sweep.end
    if types_of(Config).get(key) is int:
        kind = "int"
        low = _whole(low)
        high = _whole(high)
    entry = {
        "type": kind,
        "low": low,
        "high": high,
    }
    return _with_log(entry, sweep)


def _whole(value: float | None) -> float | None:
    """Return a whole number as an int, any other number as it is."""
    if value is not None and float(value).is_integer():
        return int(value)
    return value


def _with_log(entry: dict[str, Any], sweep: Sweep) -> dict[str, Any]:
    if LOG_TAG in sweep.tags:
        return {**entry, "log": True}
    return entry


def shown_override(override: Override) -> str:
    """Return an override as it was typed, without any password."""
    typed = override.input_line or override.key_or_group
    return without_password(typed)
