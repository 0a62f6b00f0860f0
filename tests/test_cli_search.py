"""Studies as a person types them, in real processes, with real kills at several moments."""

from __future__ import annotations

import os
import re
import signal
import sqlite3
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import mlflow
import numpy as np
import optuna
import psutil
import pytest
from conftest import Command, Project
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial

from digit_study.search.supervision import counted

pytestmark = pytest.mark.slow
SEARCH, CONFIRM = "sweeps/optuna_search.py", "sweeps/confirm.py"
RATE = "training.learning_rate: {type: float, low: 0.001, high: 0.01}"
SPACE = f"search.space={{model.filters: {{low: 4, high: 12, step: 4}}, {RATE}}}"
TRIALS = 3


class Lab:
    """A project, a store and a study of its own."""

    def __init__(self, project: Project, uri: str, name: str, small: Path) -> None:
        self.project, self.uri, self.name, self.small = project, uri, name, small

    def start(self, *words: str, script: str = SEARCH) -> Command:
        usual = [f"study={self.name}", f"data.path={self.small}", "data.validation=100", "model=tiny"]
        usual += ["training.epochs=3", "search.pruner=none", "search.workers=2", f"search.trials={TRIALS}", SPACE]
        typed = [*usual, *words] if script == SEARCH else [f"study={self.name}", *words]
        return self.project.start(*typed, script=script, MLFLOW_TRACKING_URI=self.uri)

    def trials(self) -> list[FrozenTrial]:
        path = self.project.root / "mlruns/studies" / f"{self.name}.journal"
        try:
            storage = JournalStorage(JournalFileBackend(str(path)))
            return optuna.load_study(study_name=self.name, storage=storage).get_trials()
        except (KeyError, ValueError, FileNotFoundError):
            return []

    def runs(self) -> list[mlflow.entities.Run]:
        client = mlflow.MlflowClient(self.uri)
        return list(client.search_runs([one.experiment_id for one in client.search_experiments()]))

    def statuses(self, kind: str = "trial") -> list[str]:
        return [run.info.status for run in self.runs() if run.data.tags.get("kind") == kind]


@pytest.fixture
def lab(project: Project, typed_store: str, small_npz: Path, request: pytest.FixtureRequest) -> Iterator[Lab]:
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    lab = Lab(project, typed_store, re.sub(r"\W+", "-", request.node.name)[-60:], small_npz)
    yield lab
    assert_no_process_is_left(lab)


def of_study(lab: Lab) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter():
        try:
            environment = process.environ() if process.status() != psutil.STATUS_ZOMBIE else {}
        except (psutil.AccessDenied, psutil.NoSuchProcess):
            continue
        if environment.get("MLFLOW_TRACKING_URI") == lab.uri:
            found.append(process)
    return found


def workers_of(command: Command) -> list[psutil.Process]:
    """The processes of trials: children of the server that is a child of the command."""
    try:
        servers = psutil.Process(command.process.pid).children()
        return [child for server in servers for child in server.children()]
    except psutil.NoSuchProcess:
        return []


def assert_no_process_is_left(lab: Lab, within: float = 10) -> None:
    wait_until(lambda: not of_study(lab), within, "no process of the study is left")


def wait_until(holds: Callable[[], object], seconds: float, what: str) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, f"not within {seconds} s: {what}"
        time.sleep(0.02)


# --------------------------------------------------------------------------- moments


def begun(lab: Lab, command: Command) -> bool:
    return bool(lab.trials())


def has_run(lab: Lab, command: Command) -> bool:
    return any("run_id" in trial.user_attrs for trial in lab.trials())


def in_an_epoch(lab: Lab, command: Command) -> bool:
    return any(trial.intermediate_values for trial in lab.trials())


def last_epoch(lab: Lab, command: Command) -> bool:
    return any(len(trial.intermediate_values) == 3 for trial in lab.trials())


def one_ended(lab: Lab, command: Command) -> bool:
    return command.printed("COMPLETE")


def at_once(lab: Lab, command: Command) -> bool:
    return True


def warming_up(lab: Lab, command: Command) -> bool:
    return bool(psutil.Process(command.process.pid).children())


def assert_whole(lab: Lab) -> None:
    """No RUNNING in either store, the total met, and both stores of one opinion."""
    trials = lab.trials()
    assert Counter(trial.state.name for trial in counted(trials)) == {"COMPLETE": TRIALS}
    assert {trial.state.name for trial in trials} <= {"COMPLETE", "FAIL"}
    runs = [run for run in lab.runs() if run.data.tags.get("kind") == "trial"]
    told = {run.info.run_id: (run.info.status, run.data.tags.get("trial.state")) for run in runs}
    ended = {"COMPLETE": ("FINISHED", "COMPLETE")}
    for trial in trials:
        if "run_id" in trial.user_attrs and trial.state.name in ended:
            assert told[trial.user_attrs["run_id"]] == ended[trial.state.name]
    assert {state for _, state in told.values()} <= {"COMPLETE", "FAIL"}
    assert {status for status, _ in told.values()} <= {"FINISHED", "FAILED", "KILLED"}
    assert lab.statuses("study") == ["FINISHED"]


# --------------------------------------------------------------------------- kills


@pytest.mark.parametrize(
    ("moment", "whole_group"),
    [
        (at_once, False),
        (warming_up, True),
        (has_run, True),
        (in_an_epoch, False),
        (one_ended, True),
    ],
    ids=lambda value: value.__name__ if callable(value) else "group" if value else "parent",
)
def test_a_killed_study_goes_on_with_the_same_command(
    moment: Callable[[Lab, Command], bool], whole_group: bool, lab: Lab
) -> None:
    command = lab.start()
    wait_until(lambda: moment(lab, command), 60, moment.__name__)
    reported = {t.number: t.values for t in lab.trials() if t.state.name == "COMPLETE"}
    (os.killpg if whole_group else os.kill)(command.process.pid, signal.SIGKILL)
    command.finish()
    done = lab.start().finish()
    assert (done.code, done.err) == (0, "")
    assert_whole(lab)
    assert reported.items() <= {t.number: t.values for t in lab.trials()}.items()


@pytest.mark.parametrize("moment", [at_once, warming_up, has_run, in_an_epoch], ids=lambda moment: moment.__name__)
def test_a_signal_ends_everything_cleanly_and_says_how_to_go_on(
    moment: Callable[[Lab, Command], bool], lab: Lab
) -> None:
    command = lab.start()
    wait_until(lambda: moment(lab, command), 60, moment.__name__)
    if moment is at_once:
        time.sleep(1.0)  # before it has read its command line it can say nothing
    is_group = moment in (warming_up, in_an_epoch)
    (os.killpg if is_group else os.kill)(command.process.pid, signal.SIGINT if is_group else signal.SIGTERM)
    done = command.finish(timeout=60)
    assert done.code == (130 if is_group else 143)
    assert "Traceback" not in done.err
    assert "RUNNING" not in {trial.state.name for trial in lab.trials()}
    assert "RUNNING" not in {run.info.status for run in lab.runs()}
    if has_run(lab, command):
        assert "the same command goes on" in done.err
    assert_no_process_is_left(lab, 5)


@pytest.mark.parametrize("moment", [in_an_epoch, last_epoch], ids=lambda moment: moment.__name__)
def test_a_killed_trial_is_known_at_once_and_runs_again(moment: Callable[[Lab, Command], bool], lab: Lab) -> None:
    command = lab.start()
    wait_until(lambda: moment(lab, command) and workers_of(command), 60, moment.__name__)
    workers_of(command)[0].kill()
    wait_until(lambda: command.printed("SIGKILL"), 15, "the death of a trial is known")
    done = command.finish()
    assert done.code == 0, done.err
    assert_whole(lab)
    assert [t for t in lab.trials() if "SIGKILL" in t.user_attrs.get("reason", "")]
    assert "FAILED" in lab.statuses()


def test_a_stopped_trial_costs_only_itself(lab: Lab) -> None:
    command = lab.start("search.trial_timeout=15", "search.workers=1", "training.epochs=12", "search.trials=2")
    wait_until(lambda: in_an_epoch(lab, command), 60, "an epoch")
    workers_of(command)[0].suspend()
    done = command.finish()
    assert done.code == 0, done.err
    assert Counter(trial.state.name for trial in lab.trials()) == {"FAIL": 1, "COMPLETE": 1}
    assert "search.trial_timeout=15" in done.out


def test_a_trial_that_takes_too_much_memory_costs_only_itself(lab: Lab) -> None:
    done = lab.start("search.trial_memory=0.05", "search.trials=1").finish()
    assert done.code == 1 and "more than search.trial_memory=0.05" in done.out
    assert lab.statuses() != ["RUNNING"] and "RUNNING" not in {trial.state.name for trial in lab.trials()}


def test_trials_outlive_the_server_they_were_forked_from(lab: Lab) -> None:
    command = lab.start()
    wait_until(lambda: in_an_epoch(lab, command) and workers_of(command), 60, "an epoch")
    workers_of(command)[0].parent().kill()
    done = command.finish()
    assert done.code == 0, done.err
    assert_whole(lab)


def test_a_supervisor_killed_beside_a_stopped_trial_leaves_no_process(lab: Lab) -> None:
    command = lab.start("training.epochs=20")
    wait_until(lambda: in_an_epoch(lab, command) and workers_of(command), 60, "an epoch")
    stopped = workers_of(command)[0]
    stopped.suspend()
    command.process.kill()
    command.finish()
    assert lab.start("training.epochs=20", "search.trials=1").finish().code == 0
    assert not stopped.is_running() or stopped.status() == psutil.STATUS_ZOMBIE


# --------------------------------------------------------------------------- together


def test_two_processes_join_one_study_in_a_database(lab: Lab, tmp_path: Path) -> None:
    storage = f"search.storage=sqlite:///{tmp_path}/optuna.db"
    both = [lab.start(storage, "search.workers=1", "search.trials=6", "training.epochs=1") for _ in range(2)]
    for done in [command.finish() for command in both]:
        assert done.code == 0, done.err
    trials = optuna.load_study(study_name=lab.name, storage=f"sqlite:///{tmp_path}/optuna.db").trials
    assert Counter(trial.state.name for trial in trials) == {"COMPLETE": 6}
    assert len({trial.user_attrs["supervisor"] for trial in trials}) == 2
    assert lab.statuses("study") == ["FINISHED"]
    with sqlite3.connect(tmp_path / "optuna.db") as connection:
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    connection.close()


def test_a_study_that_is_killed_does_not_disturb_the_one_beside_it(lab: Lab) -> None:
    other = Lab(lab.project, lab.uri, "beside", lab.small)
    killed, beside = lab.start("training.epochs=6"), other.start("search.fresh=true")
    wait_until(lambda: in_an_epoch(lab, killed), 60, "an epoch")
    killed.process.kill()
    killed.finish()
    done = beside.finish()
    assert done.code == 0, done.err
    assert lab.start("training.epochs=6").finish().code == 0
    for one in (lab, other):
        assert Counter(trial.state.name for trial in counted(one.trials())) == {"COMPLETE": TRIALS}
    assert lab.statuses("study") == ["FINISHED"] * 2 and "RUNNING" not in lab.statuses()


@pytest.mark.parametrize("word", ["search.fresh=true"])
def test_four_starts_at_once_make_one_study(word: str, lab: Lab) -> None:
    four = [lab.start(word, "search.workers=1", "search.trials=4", "training.epochs=1") for _ in range(4)]
    for done in [command.finish() for command in four]:
        assert done.code == 0, done.err
    assert Counter(trial.state.name for trial in counted(lab.trials())) == {"COMPLETE": 4}
    assert lab.statuses("study") == ["FINISHED"]


# --------------------------------------------------------------------------- what is printed, and confirmation


@pytest.fixture(scope="module")
def studied(
    project: Project, migrated: Path, small_npz: Path, sample: tuple[np.ndarray, np.ndarray],  # type: ignore[type-arg]
    tmp_path_factory: pytest.TempPathFactory,
) -> Lab:  # fmt: skip
    """A finished study on digits whose test images nobody can read."""
    folder = tmp_path_factory.mktemp("studied")
    whole = dict(np.load(small_npz))
    path = folder / "sealed.npz"
    np.savez_compressed(path, **whole)
    spoil(path, "x_test.npy")
    uri = f"sqlite:///{folder / 'mlflow.db'}"
    Path(folder / "mlflow.db").write_bytes(migrated.read_bytes())
    lab = Lab(project, uri, "studied", path)
    done = lab.start().finish()
    assert done.code == 0, done.err
    lab.out = done.out  # type: ignore[attr-defined]
    return lab


def spoil(path: Path, member: str) -> None:
    """Overwrite the data of one member of an archive, so that whoever reads it is told."""
    import zipfile

    with zipfile.ZipFile(path) as archive:
        entry = archive.getinfo(member)
    content = bytearray(path.read_bytes())
    start = entry.header_offset + 200
    content[start : start + 500] = os.urandom(500)
    path.write_bytes(content)
    with pytest.raises((zipfile.BadZipFile, Exception), match=r".+"):
        np.load(path)["x_test"]


def test_the_printed_line_runs_and_gives_the_same_accuracy(studied: Lab) -> None:
    line = re.search(r"python (src/run\.py .*)", studied.out)  # type: ignore[attr-defined]
    assert line is not None
    import shlex

    script, *words = shlex.split(line[1])
    done = studied.project.start(*words, script=script, MLFLOW_TRACKING_URI=studied.uri).finish()
    assert done.code == 0, done.err
    best = max(trial.values[0] for trial in studied.trials())
    assert f"{100 * best:.2f} %" in done.out


def test_confirmation_after_a_kill_runs_only_what_is_missing(studied: Lab) -> None:
    words = ("confirm.top=2", "confirm.seeds=2")
    command = studied.start(*words, script=CONFIRM)
    command.wait_for("1/4")
    command.process.kill()
    command.finish()
    wait_until(lambda: not of_study(studied), 10, "its trials have ended")
    finished = studied.statuses("confirmation-run").count("FINISHED")
    command = studied.start(*words, script=CONFIRM)
    command.wait_for("/4")
    command.process.terminate()
    assert command.finish().code == 143
    assert "RUNNING" not in {run.info.status for run in studied.runs()}
    assert studied.statuses("confirmation") == ["KILLED"]
    done = studied.start(*words, script=CONFIRM).finish()
    assert done.code == 0, done.err
    assert studied.statuses("confirmation") == ["FINISHED"]
    assert studied.statuses("confirmation-run").count("FINISHED") == 4
    assert finished >= 1 and f"{finished}/4" not in done.out
    [parent] = [run for run in studied.runs() if run.data.tags.get("kind") == "confirmation"]
    assert parent.data.tags["study"] == "studied" and parent.data.tags["winner.run_id"] in done.out


def test_a_changed_study_is_refused_and_an_unknown_one_has_a_remedy(studied: Lab) -> None:
    changed = studied.start("model.batch_norm=false").finish()
    assert changed.code == 1 and "`model.batch_norm` was True, is now False" in changed.err
    unknown = studied.start("study=studied2", script=CONFIRM).finish()
    assert unknown.code == 1 and "did you mean 'studied'" in unknown.err


@pytest.mark.parametrize(
    ("word", "told"),
    [
        ("search.sampler=tpee", "did you mean 'tpe'"),
        ("search.space={model.filterz: {low: 1, high: 2}}", "did you mean 'model.filters'"),
        ("search.storage=postgresql://u:hush%23x@127.0.0.1:1/d", "search.storage"),
        ("search.storage='postgresql://u:hush@[/d'", "search.storage"),
        ("search.storage=postgresql://u:hush@h:abc/d", "search.storage"),
    ],
)
def test_bad_input_is_one_message_and_nothing_is_written(word: str, told: str, lab: Lab) -> None:
    before = lab.project.files()
    done = lab.start(word).finish()
    assert done.code == 1 and told in done.err and "Traceback" not in done.err and "hush" not in done.err
    assert lab.project.files() == before


def test_a_plan_writes_nothing(lab: Lab) -> None:
    before = lab.project.files()
    done = lab.start("--plan", "search.sampler=random").finish()
    assert done.code == 0 and "model.filters" in done.out and "3 trials in all" in done.out
    assert lab.project.files() == before
