from __future__ import annotations

import io

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from stub_worker import workspace

from digit_study.config import compose as composition
from digit_study.config.study_config import (
    OBJECTIVES,
    PRUNERS,
    SAMPLERS,
    Constraint,
    StudyConfig,
    constraints_of,
    objectives_of,
    prefer_of,
    pruner_of,
)
from digit_study.support.errors import StudyError

composition.register("study", StudyConfig)


def study(*words: str) -> StudyConfig:
    composed: StudyConfig = composition.compose_config(words, "study")
    return composed


def test_the_defaults_are_sound() -> None:
    study().validate()
    assert study().search.trials == 20 and objectives_of(study().search) == {
        "val_accuracy": "maximize"
    }


@pytest.mark.parametrize(
    ("word", "told"),
    [
        ("search.sampler=tpee", "did you mean 'tpe'"),
        ("search.pruner=medain", "did you mean 'median'"),
        ("search.trials=0", "`search.trials` must be at least 1, got 0"),
        ("search.workers=0", "search.workers"),
        ("search.timeout=0", "`search.timeout` must be greater than 0"),
        ("search.trial_timeout=0", "search.trial_timeout"),
        ("search.trial_memory=-1", "search.trial_memory"),
        ("search.max_failures=0", "search.max_failures"),
        ("search.keep_models=-1", "search.keep_models"),
        ("search.objectives=[]", "search.objectives"),
        ("search.objectives=[val_accuracy]", "search.objectives"),
        ("search.objectives=[{val_acuracy: maximize}]", "did you mean 'val_accuracy'"),
        (
            "search.objectives=[{val_accuracy: maximize}, {val_accuracy: minimize}]",
            "every metric once",
        ),
        ("search.objectives=[{val_accuracy: maximise}]", "did you mean 'maximize'"),
        ("search.constraints=['parameters < 10']", "metric <= number"),
        ("search.constraints=['params <= 10']", "metric <= number"),
        ("search.constraints=['parameters <= 1e']", "metric <= number"),
        ("confirm.seeds=1", "`confirm.seeds` must be auto or a whole number in [2, 100], got '1'"),
        ("confirm.seeds=101", "confirm.seeds"),
        ("confirm.seeds=2.5", "confirm.seeds"),
        ("confirm.seeds=true", "confirm.seeds"),
        ("confirm.seeds=-3", "confirm.seeds"),
        ("confirm.seeds=''", "confirm.seeds"),
        ("confirm.seeds=atuo", "did you mean 'auto'"),
        ("confirm.max_seeds=2", "`confirm.max_seeds` must be in [3, 100], got 2"),
        ("confirm.max_seeds=101", "confirm.max_seeds"),
        ("confirm.prefer=biggest", "confirm.prefer"),
        ("study=../up", "`study` must be a name"),
        ("study='.hidden'", "`study` must be a name"),
        ("model.filters=0", "model.filters"),
    ],
)
def test_a_broken_rule_is_told(word: str, told: str) -> None:
    with pytest.raises(StudyError) as caught:
        study(word).validate()
    assert told in str(caught.value)


TWO = "search.objectives=[{val_accuracy: maximize},{parameters: minimize}]"


@pytest.mark.parametrize("pruner", [name for name in PRUNERS if name != "none"])
@pytest.mark.parametrize(
    ("objectives", "told"),
    [
        (TWO, "several objectives"),
        ("search.objectives=[{parameters: minimize}]", "end of a trial"),
        ("search.objectives=[{robust_accuracy: maximize}]", "end of a trial"),
    ],
)
def test_a_pruner_needs_one_objective_that_is_known_on_the_way(
    pruner: str, objectives: str, told: str
) -> None:
    with pytest.raises(StudyError, match=told):
        study(f"search.pruner={pruner}", objectives).validate()


@pytest.mark.parametrize(
    ("words", "pruner"),
    [((), "asha"), (("search.pruner=median",), "median"), ((TWO,), "none"),
     (("search.objectives=[{epoch_seconds: minimize}]",), "none")],
)  # fmt: skip
def test_the_pruner_is_chosen_where_none_is_named(words: tuple[str, ...], pruner: str) -> None:
    study(*words).validate()
    assert pruner_of(study(*words).search) == pruner


ROBUST = "search.objectives=[{robust_accuracy: maximize},{parameters: minimize}]"


@pytest.mark.parametrize(
    ("words", "preferred"),
    [
        ((), "smallest"),
        ((TWO,), "smallest"),
        ((ROBUST,), "robust"),
        ((ROBUST, "confirm.prefer=accuracy"), "accuracy"),
        (("confirm.prefer=robust",), "robust"),
    ],
)
def test_a_confirmation_prefers_what_the_study_searched(
    words: tuple[str, ...], preferred: str
) -> None:
    study(*words).validate()
    assert prefer_of(study(*words)) == preferred


@pytest.mark.slow
@given(
    st.sampled_from(sorted(OBJECTIVES)),
    st.sampled_from(["<=", ">="]),
    st.floats(-1e6, 1e6),
    st.floats(-1e6, 1e6),
)
def test_a_constraint_is_kept_exactly_where_it_reads_so(
    metric: str, sign: str, bound: float, value: float
) -> None:
    [found] = constraints_of(study(f"search.constraints=['{metric}{sign} {bound!r}']").search)
    kept = value <= bound if sign == "<=" else value >= bound
    assert (found.violation({metric: value}) <= 0) == kept
    assert found == Constraint(metric, 1 if sign == "<=" else -1, bound)


@pytest.mark.parametrize(
    ("words", "epochs"),
    [
        ([], 3),
        (["model.members=1,2"], 6),
        (["model.members=2", "training.epochs=2,5"], 10),
        (["training=smoke,handwriting"], 12),
        (["training=smoke,handwriting", "model.members=1,2"], 24),
        (
            [
                "search.space={training.optimizer: {choices: [adam, sgd]}, training.epochs: "
                "{choices: [1, 2], when: {training.optimizer: [sgd]}}}"
            ],
            3,
        ),
        (
            [
                "search.space={model: {choices: [tiny, cnn]}, training: {choices: [smoke], "
                "when: {model: [tiny]}}}",
                "training=handwriting",
            ],
            12,
        ),
    ],
)
def test_a_plan_knows_the_most_epochs_of_a_trial(words: list[str], epochs: int) -> None:
    from digit_study.study.study_plan import plan_study, plan_table

    typed = ["training.epochs=3"]
    if any(word.startswith("training=") for word in words):
        # what is typed holds in every option
        typed = []
    planned = plan_study(["data=mnist_sample", *typed, *words], workspace())
    assert planned.longest_epochs == epochs
    console = Console(width=200, file=io.StringIO())
    console.print(plan_table(planned))
    assert f"at most {epochs} epochs each" in console.file.getvalue()


def test_every_sampler_and_pruner_that_may_be_named_exists() -> None:
    from digit_study.study import _optuna

    assert set(_optuna.SAMPLERS) == set(SAMPLERS) and set(_optuna.PRUNERS) == set(PRUNERS)


def test_a_sampler_says_what_it_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    from digit_study.study import study_plan as plan

    monkeypatch.setattr(plan, "find_spec", lambda name: None if name == "torch" else object())
    with pytest.raises(StudyError, match=r"torch.*pip install -e '\.\[gp\]'"):
        plan.plan_study(["search.sampler=gp", "data=mnist_sample"], workspace())
    plan.plan_study(["search.sampler=tpe", "data=mnist_sample"], workspace())


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["search.sampler_args.n_startup_trails=5"], "did you mean 'n_startup_trials'?"),
        (["search.sampler_args.n_startup_trials=five"], "must be of type int, got 'five' of type"),
        (["search.sampler_args.n_startup_trials=true"], "must be of type int, got True"),
        (["search.sampler_args.n_startup_trials=-1"], "must be at least 0, got -1"),
        (["search.sampler_args.n_ei_candidates=0"], "must be at least 1, got 0"),
        (["search.sampler_args.seed=3"], "set search.seed"),
        (["search.sampler_args.gamma=3"], "`search.sampler_args` of tpe may have"),
        (["search.sampler=grid", "search.sampler_args={group: true}"], "grid, which takes none"),
        (
            ["search.sampler=nsga2", "search.sampler_args.population_size=1"],
            "greater than or equal",
        ),
        (["search.pruner=none", "search.pruner_args.patience=2"], "none, which takes none"),
        (["search.pruner=median", "search.pruner_args.n_warmup_step=2"], "'n_warmup_steps'?"),
        (["search.pruner=hyperband", "search.pruner_args.reduction_factor=1"], "at least 2, got 1"),
        (["search.pruner=percentile", "search.pruner_args.percentile=101"], "between 0 and 100"),
    ],
)
def test_an_argument_that_optuna_does_not_take_is_refused(words: list[str], told: str) -> None:
    from digit_study.study.optuna_arguments import check_arguments

    with pytest.raises(StudyError) as caught:
        check_arguments(study(*words).search, 6)
    message = str(caught.value)
    assert told in message and "\n" not in message


def test_arguments_reach_optuna_and_leave_the_other_defaults() -> None:
    from digit_study.study import _optuna

    words = ("search.sampler_args={n_startup_trials: 3, group: true}", "search.pruner=hyperband")
    search = study(*words, "search.pruner_args.reduction_factor=2").search
    sampler, pruner = _optuna.make_sampler_and_pruner(search, 6, 0)
    assert sampler._n_startup_trials == 3 and sampler._group_decomposed_search_space  # type: ignore[attr-defined]
    assert (pruner._reduction_factor, pruner._min_resource) == (2, _optuna.GRACE_EPOCHS)  # type: ignore[attr-defined]


def test_every_sampler_and_pruner_but_the_plain_ones_takes_arguments() -> None:
    from digit_study.study import _optuna, optuna_arguments

    makers = _optuna.SAMPLERS | _optuna.PRUNERS
    plain = {name for name, maker in makers.items() if not optuna_arguments.settable(maker)}
    assert plain == {"random", "grid", "asha", "none"}


@pytest.mark.slow
def test_wrong_arguments_and_starting_points_stop_a_plan() -> None:
    from digit_study.study import study_plan

    grid = ["search.sampler=grid", "search/space=small", "data=mnist_sample"]
    for word, told in (
        ("search.sampler_args.group=true", "which takes none"),
        ("search.start=[{model.filters: 9}]", "must lie in the space"),
        ("search.start=[{model.filters: 8}]", "must give every key, got filters=8"),
    ):
        with pytest.raises(StudyError, match=told):
            study_plan.plan_study([*grid, word], workspace())
