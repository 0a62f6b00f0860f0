"""Numbers as a person reads them."""

from collections.abc import Mapping
from typing import Any

#: The smallest p-value that is printed as a number.
SMALLEST_P = 0.001


def percent(fraction: float) -> str:
    """Return a fraction as per cent: ``0.9912`` as ``99.12 %``."""
    return f"{100 * fraction:.2f} %"


def with_interval(value: float, low: float, high: float) -> str:
    """Return an accuracy and its 95 % interval: ``99.12 % [98.82, 99.34]``.

    Args:
        value: The accuracy, in [0, 1].
        low: Lower end of its interval, in [0, 1].
        high: Upper end of its interval, in [0, 1].
    """
    low_percent = 100 * low
    high_percent = 100 * high
    return f"{percent(value)} [{low_percent:.2f}, {high_percent:.2f}]"


def points(difference: float) -> str:
    """Return a difference of two accuracies, in [-1, 1], as percentage points: ``+0.20 points``."""
    return f"{100 * difference:+.2f} points"


def points_with_interval(difference: float, low: float, high: float) -> str:
    """Return a difference of two accuracies and its interval: ``+0.20 points [+0.05, +0.35]``.

    Args:
        difference: The difference, in [-1, 1].
        low: Lower end of its 95 % interval, in [-1, 1].
        high: Upper end of its 95 % interval, in [-1, 1].
    """
    low_points = 100 * low
    high_points = 100 * high
    return f"{points(difference)} [{low_points:+.2f}, {high_points:+.2f}]"


def accuracy_with_interval(metrics: Mapping[Any, Any]) -> str:
    """Return the validation accuracy of a run's metrics with its 95 % interval.

    Args:
        metrics: Values by name, with ``val_accuracy``, ``val_accuracy_low`` and
            ``val_accuracy_high`` among them, in [0, 1].
    """
    return with_interval(
        metrics["val_accuracy"],
        metrics["val_accuracy_low"],
        metrics["val_accuracy_high"],
    )


def p_value(value: float) -> str:
    """Return a p-value, in [0, 1]: ``0.034``, and ``<0.001`` where three digits show nothing."""
    if value < SMALLEST_P:
        return f"<{SMALLEST_P}"
    return f"{value:.3f}"


def p_equals(value: float, level: float = 0.05) -> str:
    """Return a p-value with its sign: ``p = 0.034`` or ``p <0.001``.

    Args:
        value: The p-value, in [0, 1].
        level: What it is compared with. Below a level under 0.001 the number itself is needed.
    """
    if level < SMALLEST_P:
        return f"p = {value:.2g}"
    if value < SMALLEST_P:
        return f"p {p_value(value)}"
    return f"p = {p_value(value)}"


def listed(values: Mapping[str, Any]) -> str:
    """Return numbers by name as a person types them, without zeros: ``{cpu: 4, gpu: 0.25}``."""
    shown: list[str] = []
    for key, value in values.items():
        if value:
            shown.append(f"{key}: {value:g}")
    return "{" + ", ".join(shown) + "}"
