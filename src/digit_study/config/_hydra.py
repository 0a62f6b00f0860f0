"""The one private name of Hydra that is used, for which 1.3 has no public one; a test fails should it move."""

from argparse import Namespace
from collections.abc import Sequence

from hydra._internal.utils import get_args_parser


def parse_arguments(arguments: Sequence[str]) -> Namespace:
    """A command line as Hydra reads it: ``overrides``, ``multirun`` and Hydra's own options."""
    parsed: Namespace = get_args_parser().parse_args(list(arguments))
    return parsed
