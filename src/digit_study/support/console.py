"""What a person sees in the terminal: messages, warnings and numbers."""

import sys
from collections.abc import Mapping
from typing import Any

from rich.console import Console


def console() -> Console:
    """Standard output; plain and never wrapped where it is piped."""
    is_terminal = sys.stdout.isatty()
    return Console(
        width=None if is_terminal else 160, highlight=False, markup=False, soft_wrap=not is_terminal
    )


def print_error(message: str, style: str = "red") -> None:
    """Print a message to standard error, in one piece."""
    Console(stderr=True, highlight=False, markup=False, soft_wrap=True).print(message, style=style)


def warn(message: str) -> None:
    """Print a prominent warning to standard error."""
    print_error(f"WARNING: {message}", "bold yellow")


def percent(fraction: float) -> str:
    """``0.9912`` as ``99.12 %``."""
    return f"{100 * fraction:.2f} %"


def with_interval(value: float, low: float, high: float) -> str:
    """``99.12 % [98.82, 99.34]``: an accuracy and its 95 % interval, all in [0, 1]."""
    return f"{percent(value)} [{100 * low:.2f}, {100 * high:.2f}]"


def accuracy_with_interval(metrics: Mapping[Any, Any]) -> str:
    """The validation accuracy among ``metrics`` with its 95 % interval."""
    return with_interval(*(metrics[f"val_accuracy{end}"] for end in ("", "_low", "_high")))
