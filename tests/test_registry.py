"""The gate, the aliases, the ledger and the way back; no TensorFlow, a real MLflow store."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import optuna
import pytest
import recorded_store as rs
from hypothesis import given
from hypothesis import strategies as st
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from scipy.stats import binom, norm, poisson

from digit_study.config.promote_config import FileConfig, GateConfig, PromoteConfig, StoreConfig
from digit_study.data.sources import sample_arrays
from digit_study.registry import contest, promotion
from digit_study.stats.gate import NetworkResult, budget, decide
from digit_study.stats.ranking import PairedTest, paired_test
from digit_study.study.begun_study import UID
from digit_study.study.journal import journal_path, stored_attributes
from digit_study.support.errors import StudyError
from digit_study.support.workspace import Workspace

N = 10_000


@pytest.fixture
def store(migrated: Path, tmp_path: Path) -> rs.Store:
    return rs.make_store(migrated, tmp_path)


def printed(capsys: pytest.CaptureFixture[str]) -> str:
    return capsys.readouterr().out


# ---------------------------------------------------------------------------------- the decision


def contest_of_counts(
    b: int, c: int, sizes: tuple[int, int]
) -> tuple[NetworkResult, NetworkResult, PairedTest]:
    """As :func:`contest_of`, from counts alone, for many."""
    p_value = float(min(1.0, 2 * binom.cdf(min(b, c), b + c, 0.5))) if b + c else 1.0
    scores = (
        NetworkResult("new", 9_800 + c - b, N, sizes[0]),
        NetworkResult("old", 9_800, N, sizes[1]),
    )
    return *scores, PairedTest(b, c, N, (c - b) / N, -1.0, 1.0, p_value)


def contest_of(
    only_champion: int, only_challenger: int, sizes: tuple[int, int]
) -> tuple[NetworkResult, NetworkResult, PairedTest]:
    """A champion with 9,900 of 10,000 correct, and a challenger with the given flips.

    Sizes are of challenger and champion.
    """
    champion = np.arange(N) < 9_900
    challenger = champion.copy()
    challenger[:only_champion] = False
    challenger[9_900 : 9_900 + only_challenger] = True
    scores = [
        NetworkResult(name, int(correct.sum()), N, size)
        for name, correct, size in zip(("new", "old"), (challenger, champion), sizes, strict=True)
    ]
    return scores[0], scores[1], paired_test(champion, challenger)


@pytest.mark.parametrize(
    ("flips", "sizes", "promoted", "rule"),
    [
        ((10, 40), (200, 100), True, "better"),
        ((10, 40), (50, 100), True, "better"),
        ((40, 10), (50, 100), False, "worse"),
        ((40, 10), (200, 100), False, "worse"),
        ((0, 0), (50, 100), True, "smaller"),
        ((20, 20), (99, 100), True, "smaller"),
        ((8, 0), (99, 100), True, "smaller"),  # at worst 13 of 10,000
        ((14, 0), (99, 100), False, "not_better"),  # at worst 21
        ((20, 0), (99, 100), False, "not_better"),  # exactly the margin of 0.002
        ((21, 0), (99, 100), False, "worse"),
        ((0, 0), (100, 100), False, "not_better"),
        ((20, 20), (101, 100), False, "not_better"),
        ((20, 25), (200, 100), False, "not_better"),  # more, but not significantly
        ((20, 25), (99, 100), True, "smaller"),
        ((0, 6), (200, 100), False, "not_better"),  # p = 0.03125
        (
            (0, 7),
            (200, 100),
            True,
            "better",
        ),  # p = 0.0156, and the first comparison may spend 0.0304
        (
            (20, 40),
            (200, 100),
            True,
            "better",
        ),  # twenty images more among sixty that flip, p = 0.0135
    ],
)
def test_the_gate(
    flips: tuple[int, int], sizes: tuple[int, int], promoted: bool, rule: str
) -> None:
    decision = decide(*contest_of(*flips, sizes), GateConfig())
    assert (decision.promoted, decision.rule) == (promoted, rule)
    assert "p = " in decision.reason
    assert "new (" in decision.reason


@pytest.mark.parametrize(
    ("correct", "promoted"), [(9_500, True), (9_499, False), (10_000, True), (0, False)]
)
def test_the_first_must_pass_the_floor(correct: int, promoted: bool) -> None:
    decision = decide(NetworkResult("new", correct, N, 5), None, None, GateConfig())
    assert (decision.promoted, decision.rule) == (promoted, "first" if promoted else "below_floor")
    assert "floor of 95.00 %" in decision.reason


@pytest.mark.slow
@given(
    st.integers(0, 100),
    st.integers(0, 100),
    st.tuples(st.integers(1, 9), st.integers(1, 9)),
    st.floats(0, 0.02),
    st.floats(0.001, 0.5),
    st.integers(0, 60),
)
def test_the_gate_is_what_it_says(
    b: int, c: int, sizes: tuple[int, int], margin: float, alpha: float, before: int
) -> None:
    challenger, champion, test = contest_of(b, c, sizes)
    decision = decide(
        challenger, champion, test, GateConfig(margin=margin, significance=alpha), before
    )
    level = alpha * 6 / (np.pi * (before + 1)) ** 2
    better = test.p_value < level and challenger.accuracy > champion.accuracy
    least = test.lower_end(level)
    assert least == 0 or test.z_statistic(least) == pytest.approx(norm.isf(level), abs=1e-6)
    smaller = test.lower_end(level) >= -margin and sizes[0] < sizes[1]
    assert decision.promoted == (better or smaller)
    assert f"comparison {before + 1} on these images" in decision.reason


@pytest.mark.slow
@given(st.integers(0, 100), st.integers(0, 100), st.integers(1, 9), st.integers(1, 9))
def test_no_two_networks_replace_each_other_by_being_better(
    b: int, c: int, one: int, other: int
) -> None:
    there = decide(*contest_of(b, c, (one, other)), GateConfig())
    back = decide(*contest_of(c, b, (other, one)), GateConfig())
    assert not (there.rule == back.rule == "better")
    assert not (there.rule == back.rule == "smaller")


@pytest.mark.slow
def test_all_comparisons_together_spend_what_they_share() -> None:
    spent = [budget(0.05, before) for before in range(2_000)]
    assert [one.comparison for one in spent] == list(range(1, 2_001))
    assert (
        spent[0].level == pytest.approx(0.0304, abs=1e-4) and sum(one.level for one in spent) < 0.05
    )
    assert all(one.level > later.level > 0 for one, later in pairwise(spent))
    assert spent[-1].left == pytest.approx(0.05 - sum(one.level for one in spent), abs=1e-12)


@pytest.mark.slow
def test_fifty_equally_good_challengers_move_the_alias_wrongly_in_one_history_of_twenty() -> None:
    random, histories, wrong = np.random.default_rng(0), 100, 0
    for _ in range(histories):
        flips = random.poisson(60, 50)
        decided = [
            contest_of_counts(f - c, c, (1, 1))
            for f, c in zip(flips, random.binomial(flips, 0.5), strict=True)
        ]
        wrong += any(
            decide(*one, GateConfig(), before).promoted for before, one in enumerate(decided)
        )
    assert wrong / histories <= 0.05


@pytest.mark.slow
@pytest.mark.parametrize("flips", [30, 60, 120])
def test_fifty_smaller_challengers_that_lose_the_margin_pass_in_one_history_of_twenty(
    flips: int,
) -> None:
    """Exactly: over all ways in which images can flip between networks, 20 of 10,000 apart."""
    counts = np.arange(220)
    chance = np.outer(poisson.pmf(counts, flips / 2 + 10), poisson.pmf(counts, flips / 2 - 10))
    scores = np.array(
        [
            [PairedTest(b, c, N, 0.0, 0.0, 0.0, 1.0).z_statistic(-0.002) for c in counts]
            for b in counts
        ]
    )
    passed = [
        float(chance[scores >= norm.isf(budget(0.05, before).level)].sum()) for before in range(50)
    ]
    assert sum(passed) <= 0.05


@pytest.mark.parametrize(("flips", "share"), [(30, 0.95), (60, 0.74), (120, 0.46)])
def test_a_smaller_network_that_is_as_good_passes_this_often(flips: int, share: float) -> None:
    """The shares that :func:`decide` names, exactly: over all ways in which images can fall."""
    chances = binom.pmf(np.arange(flips + 1), flips, 0.5)
    passes = [
        decide(*contest_of_counts(flips - c, c, (1, 2)), GateConfig()).promoted
        for c in range(flips + 1)
    ]
    assert share <= float(chances @ np.array(passes)) <= share + 0.01


@pytest.mark.parametrize(("one", "other"), [("x", "y"), ("x", None), (None, "y"), (None, None)])
def test_other_digits_are_refused(one: str | None, other: str | None) -> None:
    tags = [{} if digest is None else {"dataset.sha256": digest} for digest in (one, other)]
    challenger: Any = SimpleNamespace(
        run_id="a", run=SimpleNamespace(data=SimpleNamespace(tags=tags[0]))
    )
    champion: Any = SimpleNamespace(run_id=None, tags=tags[1], version="1", name="m")
    with pytest.raises(StudyError, match="promote.model_name=m-2"):
        contest.require_same_data(None, challenger, champion)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("config", "word"),
    [
        (PromoteConfig(promote=GateConfig(margin=-0.1)), "promote.margin"),
        (PromoteConfig(promote=GateConfig(margin=1.0)), "promote.margin"),
        (PromoteConfig(promote=GateConfig(floor=1.01)), "promote.floor"),
        (PromoteConfig(promote=GateConfig(floor=float("nan"))), "promote.floor"),
        (PromoteConfig(promote=GateConfig(significance=0.0)), "promote.significance"),
        (PromoteConfig(promote=GateConfig(model_name="a/b")), "promote.model_name"),
        (PromoteConfig(promote=GateConfig(model_name="")), "promote.model_name"),
        (PromoteConfig(rollback=True, history=True), "drop one"),
        (PromoteConfig(rollback=True, run_id="x"), "drop one"),
        (PromoteConfig(run_id=" "), "run_id"),
    ],
)
def test_values_are_checked(config: PromoteConfig, word: str) -> None:
    with pytest.raises(StudyError, match=re.escape(word)):
        config.validate()


# ---------------------------------------------------------------------- aliases and ledger


@pytest.mark.slow
def test_first_better_worse_and_back(store: rs.Store, capsys: pytest.CaptureFixture[str]) -> None:
    weak, strong = rs.add_run(store, range(40)), rs.add_run(store, range(10), 5_000)
    store.promote(store.ask(weak))
    assert store.registry.aliases() == {"champion": "1"}
    store.promote(store.ask(strong))
    assert store.registry.aliases() == {"champion": "2", "previous": "1"}
    store.promote(store.ask(weak))
    assert store.registry.aliases() == {"champion": "2", "previous": "1", "challenger": "3"}
    store.promote(store.ask(rollback=True))
    assert store.registry.aliases() == {"champion": "1", "challenger": "3"}
    assert (
        printed(capsys)
        .splitlines()[-1]
        .endswith(f"#/models/{rs.NAME}?workflowType=machine_learning")
    )
    with pytest.raises(StudyError, match="alias 'previous'"):
        store.promote(store.ask(rollback=True))
    printed(capsys)
    store.promote(store.ask(history=True))
    history = printed(capsys)
    assert "opened 3 times" in history
    assert history.count("promotion of run") == 3
    assert f"rollback to run {weak}: restored version 1" in history
    assert len(store.registry.ledger.entries()) == 4


@pytest.mark.slow
def test_a_second_rollback_goes_one_further_back(store: rs.Store) -> None:
    for wrong in (40, 20, 5):
        store.promote(store.ask(rs.add_run(store, range(wrong))))
    assert store.registry.aliases() == {"champion": "3", "previous": "2"}
    store.promote(store.ask(rollback=True))
    assert store.registry.aliases() == {"champion": "2", "previous": "1"}
    store.promote(store.ask(rollback=True))
    assert store.registry.aliases() == {"champion": "1"}


@pytest.mark.slow
def test_a_rollback_without_a_champion_names_none(
    store: rs.Store, capsys: pytest.CaptureFixture[str]
) -> None:
    for wrong in (40, 5):
        store.promote(store.ask(rs.add_run(store, range(wrong))))
    store.client.delete_registered_model_alias(rs.NAME, "champion")
    printed(capsys)
    store.promote(store.ask(rollback=True))
    assert store.registry.aliases() == {"champion": "1"}
    shown = printed(capsys)
    assert "is champion again; there is none before it" in shown.replace("\n", " ")
    assert "None" not in shown


@pytest.mark.slow
def test_evidence_is_on_the_version(store: rs.Store) -> None:
    noted = StoreConfig(store.uri, {"owner": "me"}, "a note")
    store.promote(replace(store.ask(rs.add_run(store, range(40))), tracking=noted))
    run_id = rs.add_run(store, range(10))
    store.promote(store.ask(run_id))
    version = store.client.get_model_version_by_alias(rs.NAME, "champion")
    tags = version.tags
    assert (version.run_id, tags["run_id"], tags["compared.version"]) == (run_id, run_id, "1")
    assert (float(tags["test_accuracy"]), int(tags["test_images"])) == (0.99, 1_000)
    assert float(tags["test_accuracy_low"]) < 0.99 < float(tags["test_accuracy_high"])
    assert float(tags["mcnemar_p"]) == pytest.approx(2 * 0.5**30)
    model = store.client.get_registered_model(rs.NAME)
    assert model.tags["test_set.opened"] == "2"
    assert "opened 2 times" in model.description and version.description in model.description
    page = f"#/experiments/{store.experiment}/runs/{run_id}"
    assert version.description.startswith("**") and f"]({page})" in version.description
    assert (
        "| correct of 1,000 sealed images | 99.00 % [98.17, 99.46] | 96.00 % |"
        in version.description
    )
    assert f"[version 1](#/models/{rs.NAME}/versions/1)" in version.description
    first = store.client.get_model_version(rs.NAME, "1")
    assert first.tags["owner"] == "me" and first.description.startswith("a note\n\n**")


@pytest.mark.slow
def test_below_the_floor_becomes_challenger_and_nobody_champion(
    store: rs.Store, capsys: pytest.CaptureFixture[str]
) -> None:
    store.promote(store.ask(rs.add_run(store, range(100))))
    assert store.registry.aliases() == {"challenger": "1"}
    told = printed(capsys)
    assert "version 1 of digit-recognizer is registered as challenger" in told
    assert "there is still no champion" in told
    assert "predict.py <images> model=models:/digit-recognizer/1" in told


@pytest.mark.slow
def test_the_champion_itself_is_not_compared(
    store: rs.Store, capsys: pytest.CaptureFixture[str]
) -> None:
    run_id = rs.add_run(store)
    store.promote(store.ask(run_id))
    before = store.registry.ledger.path.read_text()
    printed(capsys)
    store.promote(store.ask(run_id))
    assert "is the champion already" in printed(capsys)
    assert store.registry.ledger.path.read_text() == before
    assert list(store.registry.versions()) == ["1"]


@pytest.mark.slow
def test_a_dry_run_touches_nothing(store: rs.Store, capsys: pytest.CaptureFixture[str]) -> None:
    first, second = rs.add_run(store), rs.add_run(store)
    store.promote(store.ask(first, dry_run=True))
    assert not [*store.registry.ledger.path.parent.glob("ledger.*")]
    assert store.client.search_registered_models() == []
    store.promote(store.ask(first))
    before = store.registry.ledger.path.read_text()
    printed(capsys)
    store.promote(store.ask(second, dry_run=True))
    assert re.search(rf"run {second}: .*version 1 \(run {first}\)", printed(capsys), re.DOTALL)
    assert store.registry.ledger.path.read_text() == before
    assert store.registry.aliases() == {"champion": "1"}


@pytest.mark.slow
def test_the_winner_of_the_latest_confirmation_is_taken(store: rs.Store) -> None:
    old, new, unfinished = (rs.add_run(store) for _ in range(3))
    rs.add_confirmation(store, "default", old)
    rs.add_confirmation(store, "default", new)
    rs.add_confirmation(store, "default", unfinished, "FAILED")
    rs.add_confirmation(store, "it's another", unfinished)
    store.promote(store.ask())
    champion = store.registry.at("champion")
    assert champion is not None
    assert champion.run_id == new
    assert store.registry.ledger.entries()[0].start["study"] == "default"
    store.promote(store.ask(study="it's another", dry_run=True))


@pytest.mark.slow
def test_a_champion_whose_version_was_deleted_is_none(store: rs.Store) -> None:
    store.promote(store.ask(rs.add_run(store)))
    store.client.delete_model_version(rs.NAME, "1")
    store.promote(store.ask(rs.add_run(store, range(30))))
    assert store.registry.aliases() == {"champion": "2"}


@pytest.mark.slow
def test_a_missing_alias_means_no_champion(store: rs.Store) -> None:
    store.promote(store.ask(rs.add_run(store)))
    store.client.delete_registered_model_alias(rs.NAME, "champion")
    store.promote(store.ask(rs.add_run(store, range(30))))
    assert store.registry.aliases() == {"champion": "2"}


@pytest.mark.slow
def test_a_champion_that_was_registered_by_hand_needs_no_description(store: rs.Store) -> None:
    store.client.create_registered_model(rs.NAME)
    run_id = rs.add_run(store)
    (model,) = store.client.get_run(run_id).outputs.model_outputs
    source = f"models:/{model.model_id}"
    store.client.create_model_version(rs.NAME, source, run_id, model_id=model.model_id)
    store.client.set_registered_model_alias(rs.NAME, "champion", "1")
    store.promote(store.ask(rs.add_run(store, range(40))))
    assert store.registry.aliases() == {"champion": "1", "challenger": "2"}
    description = store.client.get_registered_model(rs.NAME).description
    assert f"**version 1**, run {run_id}" in description and "None" not in description


@pytest.mark.slow
def test_a_champion_on_other_digits_is_not_compared(store: rs.Store) -> None:
    store.promote(store.ask(rs.add_run(store)))
    store.client.set_model_version_tag(rs.NAME, "1", "dataset.sha256", "other")
    with pytest.raises(StudyError, match="dataset.sha256"):
        store.promote(store.ask(rs.add_run(store)))
    assert store.registry.ledger.openings() == 1


@pytest.mark.slow
def test_a_champion_without_files_is_named(store: rs.Store) -> None:
    run_id = rs.add_run(store)
    store.promote(store.ask(run_id))
    (file,) = (Path(store.uri.removeprefix("sqlite:///")).parent / "artifacts").rglob("model.keras")
    challenger = rs.add_run(store)
    file.unlink()
    with pytest.raises(StudyError, match="the champion must be there"):
        store.promote(store.ask(challenger))
    assert store.registry.ledger.openings() == 1


@pytest.mark.parametrize(
    ("kind", "word"),
    [
        ("unknown", "unknown"),
        ("running", "which is RUNNING"),
        ("failed", "which is FAILED"),
        ("deleted", "not deleted"),
        ("bare", "with a model"),
        (
            "let go",
            r"still there, got '\w+' with m-\w+ \(Logged model with ID 'm-\w+' not found\): "
            "train it again",
        ),
        (
            "emptied",
            r"still there, got '\w+' with m-\w+ \(it has no data/model.keras\): train it again",
        ),
        ("parent", "take the run it names, abc"),
    ],
)
def test_runs_that_cannot_be_promoted(store: rs.Store, kind: str, word: str) -> None:
    make: dict[str, Callable[[], str]] = {
        "unknown": lambda: "0" * 32,
        "running": lambda: rs.add_run(store, status="RUNNING"),
        "failed": lambda: rs.add_run(store, status="FAILED"),
        "deleted": lambda: rs.add_run(store),
        "bare": lambda: rs.add_run(store, model=False),
        "let go": lambda: rs.add_run(store),
        "emptied": lambda: rs.add_run(store),
        "parent": lambda: rs.add_confirmation(store, "default", "abc"),
    }
    run_id = make[kind]()
    if kind == "deleted":
        store.client.delete_run(run_id)
    if kind == "let go":  # as a confirmation does with those of all but its winner
        (model,) = store.client.get_run(run_id).outputs.model_outputs
        store.client.delete_logged_model(model.model_id)
    if kind == "emptied":
        (model,) = store.client.get_run(run_id).outputs.model_outputs
        place = store.client.get_logged_model(model.model_id).artifact_location
        (Path(place.removeprefix("file://")) / "data" / "model.keras").unlink()
    with pytest.raises(StudyError, match=word):
        store.promote(store.ask(run_id))
    assert not [*store.registry.ledger.path.parent.glob("ledger.*")]


@pytest.mark.slow
def test_a_study_that_was_begun_anew_has_no_winner_of_the_one_before(store: rs.Store) -> None:
    winner = rs.add_run(store)
    rs.add_confirmation(store, "digits", winner)
    assert store.tracker.confirmed_winner("digits") == winner
    time.sleep(0.01)  # MLflow's times are in milliseconds
    store.client.create_run(store.experiment, tags={"kind": "study", "study": "digits"})
    with pytest.raises(
        StudyError, match=r"no finished confirmation: .*sweeps/confirm.py study=digits"
    ):
        store.tracker.confirmed_winner("digits")


def test_a_study_whose_experiment_was_deleted_is_restored_first(store: rs.Store) -> None:
    rs.add_study(store, "digits", "a")
    store.client.delete_experiment(store.experiment)
    restore = rf"deleted in MLflow: restore it .*experiments restore --.* {store.experiment}`"
    with pytest.raises(StudyError, match=restore):
        store.tracker.confirmed_winner("digits")


@pytest.mark.slow
def test_two_studies_of_a_name_are_told_apart_by_who_they_are(store: rs.Store) -> None:
    first, second = rs.add_run(store), rs.add_run(store)
    rs.add_study(store, "default", "a")
    time.sleep(0.01)  # MLflow's times are in milliseconds
    rs.add_study(store, "default", "b")
    rs.add_confirmation(store, "default", second, uid="b")
    with pytest.raises(StudyError, match=rf"winner {second} of study b of another study"):
        store.tracker.confirmed_winner("default", "a")
    rs.add_confirmation(store, "default", first, uid="a")
    assert store.tracker.confirmed_winner("default", "a") == first
    assert store.tracker.confirmed_winner("default", "b") == second
    store.promote(store.ask(), study_uid="a")
    champion = store.registry.at("champion")
    assert champion is not None and champion.run_id == first
    with pytest.raises(StudyError, match=r"run_id=<run_id>") as fault:
        store.tracker.confirmed_winner("default")
    assert all(f"winner {run} of study" in str(fault.value) for run in (first, second))


def test_the_uid_of_a_study_that_is_kept_here(tmp_path: Path) -> None:
    path = journal_path(Workspace(tmp_path), "default")
    assert UID not in stored_attributes(path)
    path.parent.mkdir(parents=True)
    storage = JournalStorage(JournalFileBackend(str(path)))
    optuna.create_study(study_name="default", storage=storage).set_user_attr("uid", "a")
    assert stored_attributes(path)[UID] == "a"


def test_studies_that_cannot_be_promoted(store: rs.Store) -> None:
    rs.add_run(store, tags={"study": "digits"})
    with pytest.raises(StudyError, match="1 finished runs and no finished confirmation"):
        store.promote(store.ask(study="digits"))
    with pytest.raises(StudyError, match="did you mean 'digits'"):
        store.promote(store.ask(study="digit"))


@pytest.mark.slow
@pytest.mark.parametrize("dry_run", [True, False])
def test_digits_without_a_test_set_are_refused_before_anything_is_opened(
    dry_run: bool, store: rs.Store, tmp_path: Path
) -> None:
    images, labels = sample_arrays("train")
    np.savez(tmp_path / "own.npz", x_train=images[..., 0], y_train=labels)
    data = FileConfig(str(tmp_path / "own.npz"))
    ask = replace(store.ask(rs.add_run(store), dry_run=dry_run), data=data)
    with pytest.raises(StudyError, match="without a test set, so nothing .* can be promoted"):
        store.promote(ask)
    assert store.registry.ledger.openings() == 0


def test_no_store_is_made(tmp_path: Path) -> None:
    with pytest.raises(StudyError, match="no database"):
        promotion.run(
            replace(PromoteConfig(), tracking=rs.StoreConfig(f"sqlite:///{tmp_path}/none.db")),
            Workspace(tmp_path),
        )
    assert list(tmp_path.iterdir()) == []


def test_moved_digits_must_be_the_same(store: rs.Store, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    arrays = {
        "x": rng.integers(0, 255, (50, 28, 28), np.uint8),
        "y": np.arange(50, dtype=np.uint8) % 10,
    }
    np.savez(
        tmp_path / "x.npz",
        **{f"{k}_{part}": v for k, v in arrays.items() for part in ("train", "test")},
    )
    ask = replace(store.ask(rs.add_run(store)), data=FileConfig(str(tmp_path / "x.npz")))
    with pytest.raises(StudyError, match="data.sha256"):
        store.promote(ask)


# ---------------------------------------------------------------------------------- the seal


def test_only_promotion_names_the_sealed_set() -> None:
    source = Path(contest.__file__).parents[1]
    files = [
        *source.rglob("*.py"),
        *source.parents[1].glob("sweeps/*.py"),
        *source.parent.glob("*.py"),
    ]
    named = {
        file.name
        for file in files
        if re.search(r"open_sealed_test_set|\b_sealed\b|\bx_test|\by_test", file.read_text())
    }
    assert named == {"digits.py", "sources.py", "contest.py"}
    readers = {
        file.name for file in files if re.search(r', "test"\)|sealed=True', file.read_text())
    }
    assert readers == {"digits.py"}
    openers = {file.name for file in files if re.search(r"\bevaluate_sealed\b", file.read_text())}
    assert openers == {"contest.py", "promotion.py"}


@pytest.mark.slow
def test_evidence_has_the_corrupted_validation_images_and_does_not_decide(
    store: rs.Store, capsys: pytest.CaptureFixture[str]
) -> None:
    first = rs.add_run(store, range(40))
    second = rs.add_run(store, range(500, 510))
    store.promote(store.ask(first))
    assert "100 corrupted validation images [95 %]" in printed(capsys)
    store.promote(store.ask(second))
    evidence = store.registry.ledger.entries()[-1].end["evidence"]
    assert evidence["robust_accuracy"] == "1.0" and evidence["robust_images"] == "100"
    assert evidence["compared.robust_accuracy"] == "0.6"
    assert float(evidence["robust_difference"]) == pytest.approx(0.4)
    assert 0 < float(evidence["robust_difference_low"]) < 0.4
    assert float(evidence["robust_mcnemar_p"]) < 1e-9
    shown = printed(capsys)
    assert "difference there" in shown and "+40.00 points" in shown and "60.00 %" in shown
    page = store.registry.versions()["2"].description
    assert "| corrupted validation images | 100.00 % [96.30, 100.00] | 60.00 % |" in page


@pytest.mark.slow
def test_networks_of_different_splits_are_not_compared_on_validation_images(
    store: rs.Store, capsys: pytest.CaptureFixture[str]
) -> None:
    store.promote(store.ask(rs.add_run(store, range(40))))
    other = rs.add_run(store)
    run = store.client.get_run(other)
    moved = replace(contest.find_challenger(store.tracker, store.ask(other)), run=run)
    champion = store.registry.at("champion")
    assert contest.has_same_split(store.tracker, moved, champion)
    moved = replace(moved, data=replace(moved.data, seed=1))
    assert not contest.has_same_split(store.tracker, moved, champion)


@pytest.mark.parametrize(("validation", "is_same"), [(None, True), (1_000, True), (999, False)])
def test_a_split_is_the_same_whether_its_size_is_typed_or_usual(
    store: rs.Store, validation: int | None, is_same: bool
) -> None:
    store.promote(store.ask(rs.add_run(store, range(40))))
    challenger = contest.find_challenger(store.tracker, store.ask(rs.add_run(store)))
    typed = replace(challenger, data=replace(challenger.data, validation=validation))
    champion = store.registry.at("champion")
    assert contest.has_same_split(store.tracker, typed, champion) == is_same


@pytest.mark.slow
def test_every_comparison_spends_and_says_so(
    store: rs.Store, capsys: pytest.CaptureFixture[str]
) -> None:
    first, *others = (rs.add_run(store, range(40 + n, 80 + n)) for n in range(3))
    store.promote(store.ask(first))
    assert store.registry.ledger.comparisons() == 0  # nothing was compared, and nothing spent
    for number, run_id in enumerate(others, start=1):
        capsys.readouterr()
        store.promote(store.ask(run_id, dry_run=True))
        level = 0.05 * 6 / (np.pi * number) ** 2
        told = printed(capsys)
        assert f"comparison {number} on these images spends {level:.3g}" in told
        store.promote(store.ask(run_id, margin=0.004))
        evidence = store.registry.ledger.entries()[-1].end["evidence"]
        assert float(evidence["gate.level"]) == pytest.approx(level) and evidence[
            "gate.comparison"
        ] == str(number)
        rules = {key: evidence[f"gate.{key}"] for key in ("floor", "margin", "significance")}
        assert rules == {"floor": "0.95", "margin": "0.004", "significance": "0.05"}
        assert f"comparison {number} on these images, which leaves" in evidence["reason"]
    assert store.registry.ledger.comparisons() == 2
