"""Draw what the threshold of the shipped detector trades: digits refused against non-digits passed.

    python tools/draw_trade_off.py <mnist.npz>       # writes docs/images/trade_off.png, a minute

The digits are MNIST's validation digits of ``data.seed=0``, as they are and varied as people write.
The non-digits are drawn as those that the detector was trained on, with a seed of their own.
"""

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

from non_digits import made
from train_detector import CHECKED_NON_DIGITS, CHECKED_SEED, VALIDATION_SEED, as_people_write

from digit_study.data import sources
from digit_study.data.digits import load_digits
from digit_study.data.sources import DataConfig
from digit_study.inference import detector
from digit_study.report.figures import charts

#: Where the figure is written.
FIGURE = Path(__file__).resolve().parents[1] / "docs" / "images" / "trade_off.png"
#: How far the thresholds that are drawn lie from the shipped threshold.
REACH = 5.0
#: Thresholds that are drawn.
STEPS = 101
#: Title of the curves without a threshold at an axis.
DOTS = "against each other; dots: the shipped threshold"
#: Title of the curves over the threshold.
OVER = "over the threshold"
#: Percentages of digits that have a tick on a logarithmic axis.
TICKS = (0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20)


@dataclass(frozen=True)
class TradeOff:
    """What happens at each threshold, in per cent."""

    #: The thresholds, (n,), log-odds.
    thresholds: detector.Scores
    #: Of MNIST's validation digits, those that are refused, (n,).
    plain_refused: charts.Numbers
    #: Of the same digits, varied as people write, those that are refused, (n,).
    varied_refused: charts.Numbers
    #: Of the non-digits, those that pass, (n,).
    passed: charts.Numbers

    def at(self, threshold: float) -> int:
        """Return the position of the nearest threshold."""
        return int(np.abs(self.thresholds - threshold).argmin())


def measured(path: str | None, threshold: float) -> TradeOff:
    """Score digits and non-digits with the shipped detector.

    Args:
        path: Keras's mnist.npz; None downloads it.
        threshold: The threshold around which others are tried.
    """
    source = sources.resolve(DataConfig("mnist", path))
    digits = load_digits(source.config)
    images = digits.validation_images
    labels = digits.validation_labels
    varied, _ = as_people_write(images, labels, VALIDATION_SEED)
    non_digits = made(CHECKED_NON_DIGITS, images, labels, CHECKED_SEED)
    score = detector.scorer(detector.models())
    thresholds = threshold + np.linspace(-REACH, REACH, STEPS, dtype=np.float32)
    return TradeOff(
        thresholds,
        100 * share_below(score(images), thresholds),
        100 * share_below(score(varied), thresholds),
        100 * (1 - share_below(score(non_digits), thresholds)),
    )


def share_below(scores: detector.Scores, thresholds: detector.Scores) -> charts.Numbers:
    """Return the share of scores below each threshold, (n,)."""
    counts = np.searchsorted(np.sort(scores), thresholds)
    return counts / len(scores)


def trade_off_figure(found: TradeOff, threshold: float) -> Figure:
    """Draw the trade-off, over the threshold and against each other.

    Args:
        found: What happens at each threshold.
        threshold: The shipped threshold, which is marked.
    """
    title = "What the detector's threshold trades: digits refused, non-digits that pass"
    figure = charts.new_figure(11, 4.8, title)
    over, against = figure.subplots(1, 2)
    _draw_over_threshold(over, found, threshold)
    _draw_against(against, found, threshold)
    charts.legend_below(figure, over, columns=4)
    return figure


def _draw_over_threshold(axes: Axes, found: TradeOff, threshold: float) -> None:
    """Draw the three shares over the threshold."""
    thresholds = found.thresholds
    axes.plot(thresholds, found.plain_refused, color=charts.BLUE, label="MNIST's digits refused")
    axes.plot(
        thresholds,
        found.varied_refused,
        color=charts.ORANGE,
        label="digits varied as people write refused",
    )
    axes.plot(thresholds, found.passed, color=charts.VERMILION, label="non-digits that pass")
    axes.axvline(threshold, color=charts.GREY, linestyle="--", label="shipped threshold")
    axes.set_yscale("log")
    axes.set_ylim(bottom=TICKS[0] / 2)
    _percent_ticks(axes.yaxis)
    axes.grid(alpha=0.3)
    charts.style_axes(axes, "threshold of the score (log-odds)", "share of the images (%)", OVER)


def _draw_against(axes: Axes, found: TradeOff, threshold: float) -> None:
    """Draw the non-digits that pass against the digits that are refused."""
    position = found.at(threshold)
    for refused, colour in (
        (found.plain_refused, charts.BLUE),
        (found.varied_refused, charts.ORANGE),
    ):
        axes.plot(refused, found.passed, color=colour)
        axes.plot(refused[position], found.passed[position], "o", color=colour)
    _name_point(axes, found.plain_refused[position], found.passed[position], charts.BLUE, "right")
    _name_point(axes, found.varied_refused[position], found.passed[position], charts.ORANGE, "left")
    axes.set_xscale("log")
    axes.set_xlim(TICKS[0] / 4, 1.3 * TICKS[-1])
    axes.set_ylim(bottom=0)
    _percent_ticks(axes.xaxis)
    axes.grid(alpha=0.3)
    charts.style_axes(axes, "digits refused (%)", "non-digits that pass (%)", DOTS)


def _name_point(axes: Axes, refused: float, passed: float, colour: str, side: str) -> None:
    """Write what the shipped threshold does beside its point, where no curve runs."""
    shift = {"left": (8, 14), "right": (-8, -36)}[side]
    axes.annotate(
        f"{refused:.1f} % refused,\n{passed:.1f} % pass",
        (refused, passed),
        xytext=shift,
        textcoords="offset points",
        ha=side,
        fontsize=charts.TICK,
        color=colour,
    )


def _percent_ticks(axis: Axis) -> None:
    """Put ticks at plain percentages on a logarithmic axis."""
    axis.set_major_locator(FixedLocator(TICKS))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def main(path: str | None, into: Path) -> None:
    """Measure, draw and print the shipped threshold's line."""
    threshold = detector.threshold()
    found = measured(path, threshold)
    charts.save(trade_off_figure(found, threshold), into)
    position = found.at(threshold)
    print(
        f"{into}: at the shipped threshold {threshold:.2f}, "
        f"{found.plain_refused[position]:.2f} % of MNIST's digits and "
        f"{found.varied_refused[position]:.2f} % of varied digits are refused, "
        f"{found.passed[position]:.1f} % of non-digits pass"
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Draw the detector's trade-off.")
    parser.add_argument("mnist", nargs="?", help="Keras's mnist.npz")
    parser.add_argument("into", nargs="?", type=Path, default=FIGURE)
    options = parser.parse_args()
    main(options.mnist, options.into)
