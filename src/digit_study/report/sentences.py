"""Sentences that say what a study, a confirmation, a comparison or the frontier found."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import pandas as pd

from digit_study.report.ranking import RankedRow
from digit_study.stats.race import MOST_SEEDS, POWER, Gap
from digit_study.support.formatting import accuracy_with_interval, percent, points

#: Name of the table and the figure of what every network of a confirmation gets wrong.
MISCLASSIFIED = "misclassified_by_all"


@dataclass(frozen=True)
class SelectionBias:
    """By how much the best of a search was better there than on fresh seeds."""

    #: Name of the configuration.
    name: str
    #: Of how many configurations it was the best.
    configurations: int
    #: Validation accuracy in the search, in [0, 1].
    searched: float
    #: Mean validation accuracy on fresh seeds, in [0, 1].
    confirmed: float
    seeds: int

    @property
    def value(self) -> float:
        """Return the difference of the two accuracies, in [-1, 1]."""
        return self.searched - self.confirmed

    def __str__(self) -> str:
        return (
            f"selection bias: the best of {counted(self.configurations, 'configuration')}, "
            f"trial {trial_of(self.name)}, had {percent(self.searched)} in the search and has "
            f"{percent(self.confirmed)} on {self.seeds} fresh seeds, "
            f"{points(self.value)}"
        )


def counted(number: int, noun: str) -> str:
    """Return ``1 seed`` or ``2 seeds``."""
    if number == 1:
        return f"1 {noun}"
    return f"{number} {noun}s"


def trial_of(name: str) -> str:
    """Return the number of the trial that a configuration is named after."""
    return name.split(":")[0]


def range_of(numbers: Iterable[int]) -> str:
    """Return ``3`` for equal numbers, ``3 to 8`` for others."""
    ordered = sorted(numbers)
    if ordered[0] == ordered[-1]:
        return str(ordered[0])
    return f"{ordered[0]} to {ordered[-1]}"


def ranking_answer(board: pd.DataFrame, noun: str, machines: str = "") -> str:
    """Say which is the best of a leaderboard, and how many are tied with it.

    Args:
        board: A leaderboard, see :func:`digit_study.stats.ranking.pooled_leaderboard`.
        noun: What is ranked, as ``run``.
        machines: How the machines of the runs differ, empty where they do not.
    """
    best = board.iloc[0]
    text = (
        f"{accuracy_with_interval(dict(best))} of {best['n']:,} validation images are predicted "
        f"correctly by the best {noun}, {best['name']}"
    )
    parts = [text, _ties(others=len(board) - 1, ties=int(board["tied"].sum()) - 1)]
    if machines:
        parts.append(machines)
    return "; ".join(parts)


def _ties(others: int, ties: int) -> str:
    """Say how many of the others are not significantly different from the best."""
    if others == 0:
        return "there is no other"
    if others == 1 and ties == 0:
        return "the other is significantly worse"
    if others == 1:
        return "the other is not significantly different from it"
    if ties == 0:
        return f"all {others} others are significantly worse"
    verb = "are"
    if ties == 1:
        verb = "is"
    return f"{ties} of the other {others} {verb} not significantly different from it"


def several_validation_sets(sets: int) -> str:
    """Say before the training that not all runs can be compared image by image."""
    return (
        f"The runs have {sets} different sets of validation images (by data.seed, data.validation "
        "or the digits): only runs with the same images are ranked together, with a paired p"
    )


def splits_answer(means: pd.DataFrame) -> str:
    """Say how good a configuration is over several splits, the best of them first.

    Args:
        means: What :func:`digit_study.stats.ranking.mean_over_splits` returns.
    """
    best = means.iloc[0]
    ends = f"{percent(best['min_val_accuracy'])} to {percent(best['max_val_accuracy'])}"
    return (
        f"{percent(best['mean_val_accuracy'])} is the mean validation accuracy of {best['name']} "
        f"over {best['splits']} splits, with a standard deviation of "
        f"{100 * best['sd_val_accuracy']:.2f} points ({ends})"
    )


def unpaired_answer(count: int) -> str:
    """Say that runs are not compared."""
    if count == 1:
        return "1 run has validation images of its own and is not ranked"
    return f"{count} runs have validation images of their own and are not ranked"


def search_question(
    keys: Sequence[str], dataset: str, trials: int, method: str, states: Iterable[str]
) -> str:
    """Say what a study asks, and how far it has come.

    Args:
        keys: Config keys that are searched.
        dataset: Name of the data.
        trials: The declared total.
        method: Sampler and pruner.
        states: State of every trial.
    """
    ended = [f"{count} {state.lower()}" for state, count in Counter(states).items()]
    progress = ", ".join(ended) or "none has begun"
    return (
        f"Question: which {', '.join(keys)} is best on {dataset}? "
        f"{trials} trials ({method}); {progress}"
    )


def runs_question(count: int, overrides: Sequence[str]) -> str:
    """Say what ``run.py -m`` asks.

    Args:
        count: How many runs there are.
        overrides: What was typed.
    """
    return f"Question: which of {count} runs is best? {' '.join(overrides)}"


def confirmation_question(study: str, candidates: int, seeds: str, prefer: str) -> str:
    """Say what a confirmation asks.

    Args:
        study: Name of the study.
        candidates: How many configurations are confirmed.
        seeds: On how many fresh seeds, as ``3 to 8``.
        prefer: ``smallest``, ``accuracy`` or ``robust``.
    """
    return (
        f"Question: how good are the {candidates} best configurations of study '{study}' on "
        f"{seeds} fresh seeds? The winner is {winner_rule(prefer)}"
    )


def winner_rule(prefer: str, *, is_even: bool = True) -> str:
    """Say how the winner is chosen.

    Args:
        prefer: ``smallest``, ``accuracy`` or ``robust``.
        is_even: Whether all candidates had equally many seeds.
    """
    if prefer == "smallest":
        return "the smallest network that is not significantly different from the best"
    if prefer == "robust":
        return (
            "the network with the highest accuracy on corrupted images of those that are not "
            "significantly different from the best"
        )
    if is_even:
        return "the network with the highest mean"
    return "the network with the highest mean of those with the most seeds"


def confirmation_answer(winner: RankedRow) -> str:
    """Say which candidate won, and how good it is."""
    return (
        f"{winner.accuracy} is the mean validation accuracy of the winner, {winner.name}, over "
        f"{counted(winner.seeds, 'fresh seed')}"
    )


def separation(names: Sequence[str], gap: Gap, *, is_tied: bool) -> str:
    """Say whether the seeds separate the first two candidates, or how many more would.

    Args:
        names: Names of the two.
        gap: How far they are apart, and the noise of that.
        is_tied: Whether they are not significantly different.
    """
    both = " and ".join(trial_of(name) for name in names)
    apart = f"{100 * gap.difference:.2f} points"
    if not is_tied:
        return f"trials {both} differ significantly, by {apart}"
    more = gap.more_seeds()
    if more is None:
        return (
            f"no number of seeds can separate trials {both}: "
            f"{gap.images:,} images are too few for {apart}"
        )
    count = f"about {counted(more, 'more seed')}"
    if more + gap.seeds > MOST_SEEDS:
        count = f"more than {MOST_SEEDS:,} more seeds"
    return (
        f"{count} each would separate trials {both} ({apart} apart, with a power of "
        f"{100 * POWER:.0f} %)"
    )


def frontier_question(count: int, dataset: str) -> str:
    """Say what the frontier asks.

    Args:
        count: How many networks there are.
        dataset: Name of the data.
    """
    return (
        f"Question: how good is each of {count} networks on {dataset}, and for which is no "
        "smaller network as good?"
    )


def frontier_answer(best: RankedRow) -> str:
    """Say which network of the frontier is the best."""
    return (
        f"{best.accuracy}, the mean of {counted(best.seeds, 'seed')}, is the best validation "
        f"accuracy, of {best.name}"
    )


def search_basis(best: RankedRow, images: int, tied: int, count: int, address: str) -> list[str]:
    """Say what the answer of a search rests on.

    Args:
        best: The best configuration.
        images: How many validation images there are.
        tied: How many configurations may be the best.
        count: How many configurations there are.
        address: The overrides by which a command finds the study.
    """
    seeds = f"the mean of {best.seeds} seeds"
    if best.seeds == 1:
        seeds = "one seed"
    return [
        f"Measured on {images:,} validation images, {seeds}; "
        "the 95 % interval is of the images (Wilson).",
        f"{counted(tied, 'configuration')} of {count} could be the best: with 95 % confidence "
        "they include every configuration that truly is (McNemar, Holm).",
        "It was selected on these images, so it is partly luck: "
        f"python sweeps/confirm.py {address} measures it on fresh seeds.",
    ]


def confirmation_basis(seeds: int) -> str:
    """Say what the answer of a confirmation rests on."""
    return (
        f"The mean over {counted(seeds, 'fresh seed')}, on which nothing was selected; "
        "its 95 % interval is of the seeds (t)."
    )


def confirmation_summary(tied: int, count: int, images: int | None, bias: float | None) -> str:
    """Say how many candidates are tied, and what the selection was worth.

    Args:
        tied: How many candidates are not significantly different from the best mean.
        count: How many candidates there are.
        images: How many validation images there are; None where it is not known.
        bias: Accuracy of the best of the search minus that on fresh seeds, in [-1, 1].
    """
    measured = ""
    if images:
        measured = f", on {images:,} validation images,"
    subject = f"{tied} of {counted(count, 'candidate')}{measured}"
    verb = "are"
    if tied == 1:
        verb = "is"
    text = (
        f"{subject} {verb} not significantly different from the best mean "
        "(Tukey over seeds, or Holm over images)."
    )
    if bias is not None:
        text += f" Selection bias, what the best of the search lost on fresh seeds: {points(bias)}."
    return text


def no_page(study: str, fault: str, address: str) -> str:
    """Say that the page of a study was not written, and how to write it.

    Args:
        study: Name of the study.
        fault: Why it was not written.
        address: The overrides by which a command finds the study.
    """
    return (
        f"the page of study '{study}' was not written: {fault}; "
        f"write it with python sweeps/report.py {address}"
    )


def goes_on(done: int, epochs: int, run_id: str) -> str:
    """Return the sentence on a run that was interrupted and goes on.

    Args:
        done: Epochs that it has trained.
        epochs: Epochs at most, those of all members counted.
        run_id: Id of the run that was interrupted.
    """
    where = f"goes on after epoch {done} of {epochs}, where run {run_id} was interrupted"
    return f"{where}; fresh=true starts anew"


def multirun_goes_on(finished: int, runs: int) -> str:
    """Return the sentence on a ``-m`` that was interrupted and goes on.

    Args:
        finished: Runs that it has finished before.
        runs: All of its runs.
    """
    return f"goes on: {finished} of {counted(runs, 'run')} finished before; fresh=true starts anew"
