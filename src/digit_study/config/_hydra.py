"""The only private name of Hydra that is used; 1.3 has no public one. A test fails if it moves."""

from argparse import Namespace
from collections.abc import Sequence

from hydra._internal.utils import get_args_parser

from digit_study.support.errors import StudyError
from digit_study.support.redaction import without_password


def parse_arguments(arguments: Sequence[str]) -> Namespace:
    """Parse a command line as Hydra does.

    Args:
        arguments: Words after the name of the command; options may stand among overrides.

    Returns:
        ``overrides``, ``multirun`` and Hydra's own options.

    Raises:
        StudyError: For an option that is unknown.
    """
    parsed: Namespace
    parsed, unknown = get_args_parser().parse_known_intermixed_args(list(arguments))
    if unknown:
        rule = "an option must be one that --hydra-help lists"
        option = without_password(unknown[0])
        raise StudyError(f"{rule}, got {option!r}: drop it; a setting is given as key=value")
    return parsed
