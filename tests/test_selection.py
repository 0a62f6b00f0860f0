"""Ranks and ties, in a table of cases."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from digit_study.report.ranking import Medium, RankedTable, RankingKind
from digit_study.stats.metrics import accuracy_interval
from digit_study.stats.race import confirmed_ranking, race
from digit_study.stats.ranking import (
    Candidate,
    Group,
    mean_over_splits,
    pooled_leaderboard,
    unpaired_board,
)

N = 1_000


def candidate(name: str, wrong: range, parameters: int = 100, digest: str = "d") -> Candidate:
    correct = np.ones(N, dtype=bool)
    correct[list(wrong)] = False
    low, high = accuracy_interval(int(correct.sum()), N)
    metrics = {
        "val_accuracy": float(correct.mean()),
        "val_accuracy_low": low,
        "val_accuracy_high": high,
        "val_loss": 0.1,
        "parameters": float(parameters),
        "training_seconds": 1.0,
    }
    return Candidate(name, f"id of {name}", metrics, correct, digest)


@pytest.mark.parametrize(
    ("candidates", "order", "tied"),
    [
        ([candidate("only", range(9))], ["only"], [True]),
        ([candidate("b", range(9)), candidate("a", range(5))], ["a", "b"], [True, True]),
        # nested mistakes: twenty against five on the same images is no accident, p = 6e-5
        ([candidate("b", range(20)), candidate("a", range(5))], ["a", "b"], [True, False]),
        # six more mistakes, all of them discordant: p = 0.031; five more: p = 0.0625
        ([candidate("a", range(5)), candidate("b", range(11))], ["a", "b"], [True, False]),
        ([candidate("a", range(5)), candidate("b", range(10))], ["a", "b"], [True, True]),
        # among equals the smaller network first, whatever the order it came in
        (
            [candidate("big", range(5), 900), candidate("small", range(5), 9)],
            ["small", "big"],
            [True, True],
        ),
        (
            [candidate("small", range(5), 9), candidate("big", range(5), 900)],
            ["small", "big"],
            [True, True],
        ),
        # accuracy goes before size, and the same accuracy on other images is a tie
        (
            [candidate("small", range(6), 9), candidate("big", range(5), 900)],
            ["big", "small"],
            [True, True],
        ),
        (
            [candidate("a", range(0, 9), 1), candidate("b", range(500, 509), 2)],
            ["a", "b"],
            [True, True],
        ),
    ],
)
def test_rank_and_ties(candidates: list[Candidate], order: list[str], tied: list[bool]) -> None:
    board = pooled_leaderboard([Group(entry.name, [entry]) for entry in candidates])
    assert list(board["name"]) == order and list(board["tied"]) == tied
    assert list(board["rank"]) == list(range(1, len(order) + 1)) and set(board["n"]) == {N}
    assert board["p_value"][0] == 1.0 and list(board["tied"]) == list(board["p_adjusted"] > 0.05)
    assert (board["p_adjusted"] >= board["p_value"]).all()
    assert list(board["run_id"]) == [f"id of {name}" for name in order]


def robust(entry: Candidate, value: float) -> Candidate:
    return replace(entry, metrics={**entry.metrics, "robust_accuracy": value})


def test_a_ranking_has_the_robust_accuracy_where_it_is_known() -> None:
    known = [robust(candidate("new", range(5)), value) for value in (0.90, 0.92)]
    groups = [Group("new", known), Group("old", [candidate("old", range(9))])]
    board = pooled_leaderboard(groups)
    assert board["robust_accuracy"][0] == pytest.approx(0.91)
    assert np.isnan(board["robust_accuracy"][1])
    for kind in RankingKind:
        for medium in Medium:
            view = RankedTable.of(kind, board).view(medium)
            column = list(view.headings).index("robust")
            assert [row[column].text for row in view.rows] == ["91.00 %", "–"]
            assert "robust: accuracy on corrupted validation images" in view.legend
    # what an earlier version recorded
    RankedTable.of(RankingKind.CONFIGURATIONS, board.drop(columns="robust_accuracy"))


@pytest.mark.parametrize(
    ("prefer", "winner"), [("accuracy", "best"), ("smallest", "small"), ("robust", "sturdy")]
)
def test_the_winner_of_a_race_is_as_preferred(prefer: str, winner: str) -> None:
    entries = [
        robust(candidate("best", range(5), 300), 0.90),
        robust(candidate("sturdy", range(6), 200), 0.95),
        robust(candidate("small", range(7), 100), 0.91),
        robust(candidate("worse", range(400), 50), 0.99),
    ]
    groups = [Group(entry.name, [entry] * 3) for entry in entries]
    correct = [np.array([run.correct for run in group.runs]) for group in groups]
    found = confirmed_ranking(groups, race(correct, [300, 200, 100, 50], 3, 3), prefer)
    assert found["name"][found["winner"]].item() == winner


def test_different_data_are_never_ranked_together() -> None:
    with pytest.raises(ValueError, match="different data"):
        pooled_leaderboard(
            [
                Group("a", [candidate("a", range(5))]),
                Group("b", [candidate("b", range(5), digest="other")]),
            ]
        )


def test_nobody_to_rank_is_an_empty_board() -> None:
    assert len(pooled_leaderboard([])) == 0


def test_runs_on_images_of_their_own_are_listed_without_a_p_value() -> None:
    board = unpaired_board(
        [candidate("a", range(9)), candidate("b", range(5), digest="other images")]
    )
    assert list(board["name"]) == ["b", "a"] and list(board["rank"]) == [1, 2]
    assert board[["p_value", "p_adjusted"]].isna().all(axis=None)
    assert list(board["tied"]) == [None, None]


def test_splits_end_with_their_mean_and_spread() -> None:
    runs = [
        candidate("data.seed=0", range(10), digest="0"),
        candidate("data.seed=1", range(30), digest="1"),
        candidate("data.seed=2", range(20), digest="2"),
    ]
    (row,) = mean_over_splits([Group("tiny", runs)]).to_dict("records")
    assert row["splits"] == 3 and row["mean_val_accuracy"] == pytest.approx(0.98)
    assert row["sd_val_accuracy"] == pytest.approx(0.01)
    assert (row["min_val_accuracy"], row["max_val_accuracy"]) == (0.97, 0.99)
