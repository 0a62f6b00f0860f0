"""Arguments of Optuna's samplers and pruners, under Optuna's own names, checked before a search.

Names and types are read from Optuna's signatures, so that no list of them has to be kept here.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from digit_study.config.study_config import SearchConfig, pruner_of
from digit_study.study._optuna import PRUNERS, SAMPLERS, make_sampler_and_pruner
from digit_study.support.errors import StudyError, first_line
from digit_study.support.rules import Rule, at_least, between, raise_violations
from digit_study.support.suggestions import nearest

#: Types that a config can give, by their name in a signature. Arguments of other types, such as
#: functions, cannot be set.
TYPES: Mapping[str, tuple[type, ...]] = {
    "int": (int,),
    "float": (int, float),
    "bool": (bool,),
    "str": (str,),
    "None": (type(None),),
}
#: Arguments that another key sets.
SET_ELSEWHERE = {"seed": "search.seed"}
#: Rules that Optuna itself checks only while it searches, or not at all.
RULES: Mapping[str, Rule] = {
    "n_startup_trials": at_least(0),
    "n_ei_candidates": at_least(1),
    "prior_weight": between(0, 1e6, "(]"),
    "sigma0": between(0, 1e6, "(]"),
    "popsize": at_least(2),
    "patience": at_least(0),
    "min_resource": at_least(1),
    "max_resource": at_least(1),
    "reduction_factor": at_least(2),
    "bootstrap_count": at_least(0),
}


def check_arguments(search: SearchConfig, epochs: int) -> None:
    """Check the arguments of the sampler and of the pruner of a study.

    Args:
        search: How it is searched.
        epochs: Epochs that a trial has at most.

    Raises:
        StudyError: For an unknown name, with the nearest name, and for a wrong value.
    """
    pruner = pruner_of(search)
    raise_violations(
        [
            *_problems("search.sampler", search.sampler, SAMPLERS, search.sampler_args),
            *_problems("search.pruner", pruner, PRUNERS, search.pruner_args),
        ]
    )
    try:
        make_sampler_and_pruner(search, epochs, 0)
    except (ValueError, TypeError) as error:
        given = {**search.sampler_args, **search.pruner_args}
        raise StudyError(
            "`search.sampler_args` and `search.pruner_args` must be what Optuna takes, got "
            f"{given}: {first_line(error)}"
        ) from error


def _problems(
    key: str, name: str, makers: Mapping[str, Callable[..., Any]], given: Mapping[str, Any]
) -> Iterator[str]:
    """Yield what is wrong with the arguments of a sampler or a pruner."""
    if not given:
        return
    where = f"`{key}_args`"
    types = settable(makers[name])
    if not types:
        takers = ", ".join(taker for taker, maker in makers.items() if settable(maker))
        yield f"{where} are of {takers}, got {dict(given)} for {name}, which takes none"
        return
    for argument, value in given.items():
        if argument in SET_ELSEWHERE:
            yield f"{where} has no {argument!r}: set {SET_ELSEWHERE[argument]}"
        elif argument not in types:
            near = nearest(str(argument), types)
            rule = f"{where} of {name} may have {', '.join(types)}"
            yield f"{rule}, got {argument!r}{near}"
        else:
            yield from _value_problems(f"{key}_args.{argument}", argument, value, types[argument])


def _value_problems(key: str, argument: str, value: Any, allowed: list[str]) -> Iterator[str]:
    if not any(_is_of(value, name) for name in allowed):
        got = f"got {value!r} of type {type(value).__name__}"
        yield f"`{key}` must be of type {' or '.join(allowed)}, {got}"
        return
    rule = RULES.get(argument)
    if rule is None or isinstance(value, str):
        return
    problem = rule.violation(key, value)
    if problem is not None:
        yield problem


def _is_of(value: Any, name: str) -> bool:
    """Return whether a value is of a type; True and False are of no type but bool."""
    return isinstance(value, TYPES[name]) and (isinstance(value, bool) == (name == "bool"))


def settable(maker: Callable[..., Any]) -> dict[str, list[str]]:
    """Return the names of the types of every argument that a config can give, by its name."""
    found: dict[str, list[str]] = {}
    for name, parameter in inspect.signature(maker).parameters.items():
        annotation = parameter.annotation
        text = getattr(annotation, "__name__", str(annotation))
        types = [part.strip() for part in text.split("|")]
        if set(types) <= set(TYPES) and name not in SET_ELSEWHERE:
            found[name] = types
    return found
