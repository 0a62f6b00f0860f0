"""The only private name of Hydra that is used; 1.3 has no public one. A test fails if it moves."""

from argparse import Namespace
from collections.abc import Sequence

from hydra._internal.utils import get_args_parser


def parse_arguments(arguments: Sequence[str]) -> Namespace:
    """Parse a command line as Hydra does.

    Args:
        arguments: Words after the name of the command; options may stand among overrides.

    Returns:
        ``overrides``, ``multirun`` and Hydra's own options.
    """
    parsed: Namespace = get_args_parser().parse_intermixed_args(list(arguments))
    return parsed
