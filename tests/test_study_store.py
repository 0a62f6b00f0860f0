from __future__ import annotations

import json
import os
import shlex
import shutil
import sqlite3
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager, closing
from pathlib import Path
from typing import Any

import optuna
import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st
from optuna.storages.journal import JournalFileBackend
from optuna.storages.journal._storage import JournalOperation
from optuna.trial import TrialState, create_trial
from stub_worker import plan, workspace

from digit_study.config.study_config import SearchConfig
from digit_study.study import storage as study_store
from digit_study.study._optuna import JournalFile
from digit_study.study.journal import LAST_OPERATION
from digit_study.study.storage import StoredStudy, find_study
from digit_study.study.study_plan import journal_path, study_arguments
from digit_study.study.trial_attributes import EXCESS, REQUEUED, counted
from digit_study.support import processes, redaction
from digit_study.support.errors import StudyError
from digit_study.tracking import database


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")


def stored(*words: str) -> StoredStudy:
    asked = plan(*words)
    return study_store.open_study(asked.study, asked.run, asked.overrides, workspace())


def opened(*words: str) -> optuna.Study:
    return stored(*words).study


@pytest.fixture(params=["journal", "database"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return "search.storage=" + (
        "null" if request.param == "journal" else f"sqlite:///{tmp_path}/o.db"
    )


@pytest.mark.slow
def test_a_study_is_found_again_with_its_trials(storage: str) -> None:
    opened(storage).add_trial(create_trial(state=TrialState.COMPLETE, value=0.5))
    assert [trial.value for trial in opened(storage, "search.trials=99").trials] == [0.5]


@pytest.mark.parametrize(
    ("word", "told"),
    [
        ("model.batch_norm=false", "`model.batch_norm` was True, is now False"),
        ("search.space={model.filters: {choices: [8]}}", "`search.space.model.filters` was"),
        (
            "search.objectives=[{val_loss: minimize}]",
            "`search.objectives` was {'val_accuracy': 'maximize'}",
        ),
        ("search.constraints=['parameters <= 9']", "`search.constraints` was []"),
        ("data.limit=1000", "`data.limit` was None, is now 1000"),
        ("data.seed=7", "`data.seed` was 0, is now 7"),
        ("training.epochs=9", "`training.epochs` was 3, is now 9"),
    ],
)
def test_another_definition_is_refused_by_name(word: str, told: str) -> None:
    opened()
    with pytest.raises(StudyError) as caught:
        opened(word)
    assert told in str(caught.value) and "search.fresh=true" in str(caught.value)


def test_of_many_changes_the_first_are_named_and_the_command_that_began_the_study() -> None:
    opened("search.constraints=['parameters <= 9']")
    with pytest.raises(StudyError) as caught:
        opened("data.limit=1000", "data.seed=7", "training.epochs=9", "model.batch_norm=false")
    message = str(caught.value)
    assert message.count(" was ") == 3 and "; and 2 more: " in message
    assert "optuna_search.py study=" in message and "'search.constraints=[" in message


@pytest.mark.parametrize("key", ["training.precision", "data.sha256"])
def test_another_precision_or_other_data_are_refused(key: str) -> None:
    study = opened()
    was = study.user_attrs[study_store.DEFINITION]
    study.set_user_attr(study_store.DEFINITION, {**was, key: "other"})
    with pytest.raises(StudyError, match=f"`{key}` was 'other', is now"):
        opened()


def test_a_study_of_an_earlier_version_goes_on_where_a_key_that_it_does_not_know_has_its_default() -> (
    None
):
    study = opened()
    was = dict(study.user_attrs[study_store.DEFINITION])
    del was["model.members"]
    study.set_user_attr(study_store.DEFINITION, was)
    opened()
    with pytest.raises(StudyError, match="`model.members` was None, is now 2"):
        opened("model.members=2")


@pytest.mark.parametrize(
    "word", ["search.trials=50", "search.sampler=random", "search.seed=3", "training.threads=1"]
)
def test_what_decides_no_result_may_change(word: str) -> None:
    uid = opened().user_attrs[study_store.UID]
    assert opened(word).user_attrs[study_store.UID] == uid


def _age(study: optuna.Study) -> None:
    study.set_user_attr(study_store.CREATED, 0.0)


@pytest.mark.slow
def test_a_fresh_study_keeps_the_old_one(storage: str) -> None:
    old = opened(storage)
    old.add_trial(create_trial(state=TrialState.COMPLETE, value=0.5))
    _age(old)
    new = opened(storage, "search.fresh=true", "model.batch_norm=false")
    assert new.trials == [] and new.study_name == "s"
    kept = [path.stem for path in workspace().studies.glob("s-until-*.journal")]
    if storage.endswith("db"):
        kept = [
            name
            for name in optuna.get_all_study_names(storage.removeprefix("search.storage="))
            if name != "s"
        ]
    asked = plan(storage, f"study={kept[0]}")
    assert len(kept) == 1 and [
        one.value for one in study_store.find_study(asked.study, workspace()).trials()
    ] == [0.5]


def test_fresh_starts_of_the_same_moment_join() -> None:
    uid = opened("search.fresh=true").user_attrs[study_store.UID]
    assert opened("search.fresh=true").user_attrs[study_store.UID] == uid


def test_a_study_that_somebody_works_on_is_not_put_aside() -> None:
    study = opened()
    _age(study)
    study.set_user_attr(f"{study_store.SUPERVISED}{processes.process_name()}", True)
    with pytest.raises(StudyError, match="is being searched by"):
        opened("search.fresh=true")


@pytest.mark.slow
def test_a_study_that_another_machine_works_on_is_not_put_aside(tmp_path: Path) -> None:
    found = stored(f"search.storage=sqlite:///{tmp_path}/o.db")
    study = found.study
    _age(study)
    with warnings.catch_warnings():  # Optuna wants heartbeats to come from its own loop
        warnings.simplefilter("ignore")
        trial = study.ask()
    trial.set_user_attr(study_store.SUPERVISOR, "elsewhere:1:1.0")
    assert (database := found.database) is not None
    database.record_heartbeat(found.trial_id(trial.number))
    with pytest.raises(StudyError, match="is being searched by elsewhere:1:1.0"):
        opened(f"search.storage=sqlite:///{tmp_path}/o.db", "search.fresh=true")


@pytest.mark.slow
def test_a_study_that_another_machine_begins_at_the_same_moment_is_joined(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Machines share no lock: both find no study and begin it, the database refuses one, which waits for the other."""
    uri = f"sqlite:///{tmp_path}/o.db"
    asked = plan(f"search.storage={uri}")
    others: list[threading.Timer] = []

    def look_too_early(*arguments: Any) -> None:
        begun = optuna.create_study(study_name="s", storage=uri, direction="maximize")
        others.append(
            threading.Timer(
                0.5, study_store._define, (begun, asked.study, asked.run, asked.overrides)
            )
        )
        others[0].start()

    monkeypatch.setattr(SearchConfig, "is_shared", property(lambda search: True))
    monkeypatch.setattr(study_store, "_load", look_too_early)
    uid = opened(f"search.storage={uri}").user_attrs[study_store.UID]
    others[0].join()
    assert uid == optuna.load_study(study_name="s", storage=uri).user_attrs[study_store.UID]


@pytest.mark.parametrize(
    ("faults", "is_shared", "opens"), [(2, True, True), (1, False, False), (99, True, False)]
)
def test_tables_that_other_machines_create_meanwhile_are_waited_for(
    faults: int, is_shared: bool, opens: bool
) -> None:
    left = [RuntimeError("relation already exists")] * faults

    def open_store() -> str:
        if left:
            raise left.pop()
        return "open"

    if opens:
        assert database.with_tables(open_store, is_shared=is_shared, pause_s=0.0) == "open"
        return
    with pytest.raises(RuntimeError, match="already exists"):
        database.with_tables(open_store, is_shared=is_shared, pause_s=0.0)


@pytest.mark.parametrize(
    ("scheme", "package"), [("postgresql+psycopg", r"psycopg\[binary\]"), ("mysql", "mysqlclient")]
)
def test_a_missing_database_driver_has_a_remedy(
    scheme: str, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("psycopg", "MySQLdb"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(StudyError, match=f"python -m pip install '{package}'") as caught:
        plan(f"search.storage='{scheme}://u:hush@h/d'")
    assert "hush" not in str(caught.value)


def test_half_a_line_of_a_killed_writer_is_cut_off() -> None:
    opened().set_user_attr("kept", 1)
    path = journal_path(workspace(), "s")
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"op_code": 2, "stu')
    assert opened().user_attrs["kept"] == 1
    assert path.read_bytes() == whole
    assert all(json.loads(line) for line in path.read_text().splitlines())


def test_a_plan_sees_a_damaged_journal_and_changes_nothing() -> None:
    opened().set_user_attr("kept", 1)
    path = journal_path(workspace(), "s")
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"op_code": 2, "stu')
    plan()
    first, _, rest = whole.partition(b"\n")
    path.write_bytes(first + b"\nforeign\n" + rest)
    for words in ([], ["search.fresh=true"]):
        with pytest.raises(StudyError, match="line 2, must be a record of a study, got 'foreign'"):
            plan(*words)
    assert path.read_bytes() == first + b"\nforeign\n" + rest


@pytest.mark.parametrize("line", [b"42", b'{"op_code": 99}', b'{"op_code": -1}', b"\xff\xfe"])
def test_a_line_that_is_no_record_is_named(line: bytes) -> None:
    opened().set_user_attr("kept", 1)
    wanted = plan().study
    path = journal_path(workspace(), "s")
    with path.open("ab") as file:
        file.write(line + b"\n")
    for look in (plan, lambda: find_study(wanted, workspace())):
        with pytest.raises(StudyError, match="must be a record of a study"):
            look()


def test_every_operation_of_optuna_is_a_record() -> None:
    assert max(JournalOperation) == LAST_OPERATION and min(JournalOperation) == 0


def test_a_study_without_its_first_records_is_not_read() -> None:
    opened()
    path = journal_path(workspace(), "s")
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(line for line in lines if '"overrides"' not in line))
    with pytest.raises(StudyError, match="must have its first records, and lacks some"):
        find_study(plan().study, workspace())


@pytest.mark.parametrize("make", [os.mkfifo, Path.mkdir, lambda path: path.symlink_to("/no/where")])
def test_what_is_no_file_is_no_journal(make: Callable[[Path], None]) -> None:
    wanted = plan().study
    path = journal_path(workspace(), "s")
    path.parent.mkdir(parents=True, exist_ok=True)
    make(path)
    for look in (plan, lambda: find_study(wanted, workspace())):
        with pytest.raises(StudyError, match="must be a file, the journal of a study"):
            look()


def test_half_a_line_that_another_one_leaves_behind_does_not_spoil_the_next() -> None:
    study = opened()
    with journal_path(workspace(), "s").open("ab") as file:
        file.write(b'{"op_code": 2, "stu')
    study.set_user_attr("after", 1)
    assert opened().user_attrs["after"] == 1
    assert all(json.loads(line) for line in journal_path(workspace(), "s").read_text().splitlines())


@pytest.mark.slow
def test_processes_that_write_at_the_same_time_lose_nothing(tmp_path: Path) -> None:
    opened()
    code = (
        "import sys, pathlib; from digit_study.study._optuna import JournalFile; import optuna\n"
        "storage = optuna.storages.JournalStorage(JournalFile(pathlib.Path(sys.argv[1])))\n"
        "study = optuna.load_study(study_name='s', storage=storage)\n"
        "for number in range(50): study.set_user_attr(f'{sys.argv[2]}-{number}', number)\n"
    )
    source = Path(__file__).parents[1] / "src"
    writers = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(journal_path(workspace(), "s")), name],
            env={**os.environ, "PYTHONPATH": str(source)},
        )
        for name in "abc"
    ]
    assert [writer.wait(60) for writer in writers] == [0, 0, 0]
    assert len([key for key in opened().user_attrs if key[1:2] == "-"]) == 150


def test_a_journal_is_opened_only_for_what_is_new(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours, theirs = JournalFile(tmp_path / "one"), JournalFile(tmp_path / "one")
    theirs.append_logs([{"op_code": 0}, {"op_code": 1}])
    assert [log["op_code"] for log in ours.read_logs(0)] == [0, 1]
    opened: list[int] = []
    read = JournalFileBackend.read_logs
    monkeypatch.setattr(
        JournalFileBackend, "read_logs", lambda self, at: opened.append(at) or read(self, at)
    )
    assert list(ours.read_logs(2)) == opened == []
    assert len(list(ours.read_logs(1))) == len(opened) == 1
    with (tmp_path / "one").open("ab") as file:
        file.write(b'{"op_code"')  # half a line is nothing yet
        file.flush()
        assert list(ours.read_logs(2)) == []
        file.write(b": 2}\n")
    assert [log["op_code"] for log in ours.read_logs(2)] == [2] and opened == [1, 2, 2]


def test_a_study_whose_creator_was_killed_is_completed(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(
            optuna.Study,
            "set_metric_names",
            lambda *names: (_ for _ in ()).throw(KeyboardInterrupt),
        )
        with pytest.raises(KeyboardInterrupt):
            opened()
    with pytest.raises(StudyError, match="must name a study that exists"):
        study_store.find_study(plan().study, workspace())
    assert study_store.DEFINITION in opened().user_attrs


@pytest.mark.parametrize("word", ["search.storage=null", "search.storage=sqlite:///{}/none.db"])
def test_an_unknown_study_has_a_remedy_and_nothing_is_made(word: str, tmp_path: Path) -> None:
    with pytest.raises(
        StudyError, match="search first with python sweeps/optuna_search.py study=s"
    ):
        study_store.find_study(plan(word.format(tmp_path)).study, workspace())
    assert not (tmp_path / "none.db").exists()


def test_the_remedy_for_an_unknown_study_names_its_stores(tmp_path: Path) -> None:
    storage = f"search.storage=sqlite:///{tmp_path}/none.db"
    with pytest.raises(StudyError) as caught:
        study_store.find_study(plan(storage).study, workspace())
    remedy = f"optuna_search.py study=s \"search.storage='sqlite:///{tmp_path}/none.db'\""
    assert str(caught.value).endswith(remedy)


@pytest.mark.parametrize("word", ["search.fresh=true", "++search.fresh=true", "++search.trials=9"])
def test_what_one_command_wants_is_not_stored_however_it_is_typed(word: str) -> None:
    assert word not in opened(word).user_attrs[study_store.OVERRIDES]


def test_no_password_is_kept_or_shown() -> None:
    asked = plan("search.storage=null")
    secrets = ["search.storage=postgresql://u:hush@h/d", "tracking.uri='postgresql://u:hush@h/d'"]
    words = [*asked.overrides, *secrets, "tracking.experiment=x"]
    study = study_store.open_study(asked.study, asked.run, words, workspace()).study
    assert (
        "hush" not in json.dumps(study.user_attrs)
        and "tracking.experiment=x" in study.user_attrs["overrides"]
    )


secret = st.text("abc@#/:%?[ ", min_size=1, max_size=8).map(lambda text: f"hush{text}hush")


@given(secret)
def test_a_password_is_hidden_whatever_it_is_made_of(password: str) -> None:
    uri = f"postgresql://me:{password}@host:5432/db"
    assert redaction.without_password(uri) == "postgresql://me:***@host:5432/db"
    assert "hush" not in redaction.without_secrets(
        f"no way in with {uri}, that is {password}\nmore", uri
    )


def test_a_password_of_a_letter_leaves_words_as_they_are() -> None:
    message = "connection to server at 127.0.0.1 failed"
    assert redaction.without_secrets(message, "postgresql://me:a@127.0.0.1/d") == message


def test_a_longer_password_is_hidden_inside_words_too() -> None:
    hidden = redaction.without_secrets("user%3Ahush_1 failed", "postgresql://me:hush@127.0.0.1/d")
    assert hidden == "user%3A***_1 failed"


@pytest.mark.parametrize("tail", ["", "?x=1", "?password=hush", "?x=1&PASSWORD=hush"])
def test_a_password_in_the_query_is_hidden(tail: str) -> None:
    assert "hush" not in redaction.without_password(f"mysql://u@h/d{tail}")


@pytest.mark.parametrize(
    "uri",
    [
        "postgresql://u:hush@127.0.0.1:1/d",
        "postgresql://u:hush@h:abc/d",
        "postgresql://u:hu[sh@h/d",
        "nosuch://u:hush@h/d",
    ],
)
def test_a_storage_that_cannot_be_reached_is_one_message_without_its_password(uri: str) -> None:
    with pytest.raises(StudyError) as caught:
        plan(f"search.storage='{uri}'")
    assert "hush" not in str(caught.value) and "hu[sh" not in str(caught.value)
    assert "`search.storage` must be" in str(caught.value)


@pytest.mark.slow
def test_a_sqlite_store_is_whole_or_not_there(tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path}/x.db"

    def dies(new: str) -> None:
        Path(new.removeprefix("sqlite:///")).write_text("half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        database.create_sqlite(uri, dies)
    assert not (tmp_path / "x.db").exists()
    study = opened(f"search.storage={uri}")
    assert study.study_name == "s" and [path.name for path in tmp_path.glob("*.new*")] == []


def test_the_log_of_a_deleted_database_is_not_applied_to_the_new_one(tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path}/x.db"
    path = tmp_path / "x.db"

    def create(new: str) -> None:
        with closing(sqlite3.connect(new.removeprefix("sqlite:///"))) as connection:
            connection.execute("CREATE TABLE t (number INTEGER)")

    database.create_sqlite(uri, create)
    # as a killed process leaves it: what it wrote is in the log alone
    with closing(sqlite3.connect(path)) as connection:
        connection.executemany("INSERT INTO t VALUES (?)", [(number,) for number in range(5_000)])
        connection.commit()
        log = (tmp_path / "x.db-wal").read_bytes()
    path.unlink()
    (tmp_path / "x.db-wal").write_bytes(log)
    database.create_sqlite(uri, create)
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("SELECT count(*) FROM t").fetchone() == (0,)
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)


def test_a_database_is_whole_in_its_file_while_others_read_it(tmp_path: Path) -> None:
    path = tmp_path / "x.db"
    uri = f"sqlite:///{path}"
    database.create_sqlite(uri, lambda new: sqlite3.connect(new[10:]).close())
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE t AS SELECT 7 AS number")
        connection.commit()
        database.empty_log(uri)
        copy = shutil.copy(path, tmp_path / "copy.db")
    with closing(sqlite3.connect(copy)) as connection:
        assert connection.execute("SELECT number FROM t").fetchone() == (7,)
    database.empty_log(f"sqlite:///{tmp_path}/missing.db")
    assert not (tmp_path / "missing.db").exists()


# --------------------------------------------------------------------------- supervision


def test_a_process_is_known_by_more_than_its_number() -> None:
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    name = processes.process_name(child.pid)
    host, pid, created = name.rsplit(":", 2)
    assert processes.is_alive(name) and processes.find_process(name)
    assert not processes.find_process(f"{host}:{pid}:{float(created) - 60:.2f}")
    assert processes.is_alive(f"elsewhere:{pid}:{created}") and not processes.find_process(
        f"elsewhere:{pid}:{created}"
    )
    psutil.Process(child.pid).suspend()
    processes.end_process(name, grace=0.2)
    child.communicate(timeout=5)
    assert not processes.is_alive(name)


def test_ending_spares_this_process_and_the_dead() -> None:
    processes.end_process(processes.process_name())
    processes.end_process(f"{processes.process_name().rsplit(':', 2)[0]}:{2**22 + 1}:1.0")
    assert os.getpid() > 0


@pytest.mark.slow
def test_orphans_are_those_whose_supervisor_is_gone(storage: str) -> None:
    found = stored(storage)
    study = found.study
    gone = processes.process_name().replace(f":{os.getpid()}:", f":{2**22 + 1}:")
    for name in (processes.process_name(), gone, "elsewhere:1:1.0"):
        with warnings.catch_warnings():  # Optuna wants heartbeats to come from its own loop
            warnings.simplefilter("ignore")
            study.ask().set_user_attr(study_store.SUPERVISOR, name)
    # a database may be shared with a machine elsewhere; a journal that names one has only been begun under that name
    assert [trial.number for trial in study_store.orphans(found)] == (
        [1] if storage.endswith("db") else [1, 2]
    )


def test_of_two_machines_that_ask_for_the_last_trial_one_gets_none(storage: str) -> None:
    found = stored(storage)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        first, second = found.study.ask(), found.study.ask()
    is_shared = storage.endswith("db")  # a journal's supervisors ask in turn
    assert not found.drop_excess(first, 1) and found.drop_excess(second, 1) == is_shared
    ended = [(trial.state.name, trial.user_attrs.get("reason")) for trial in found.trials()]
    assert ended == [
        ("RUNNING", None),
        ("FAIL", EXCESS) if is_shared else ("RUNNING", None),
    ]
    assert len(counted(found.trials())) == 2 - is_shared


@given(
    st.lists(st.tuples(st.sampled_from(["WAITING", "RUNNING", "COMPLETE", "FAIL"]), st.booleans()))
)
def test_what_was_put_back_does_not_count(kinds: list[tuple[str, bool]]) -> None:
    trials = [
        create_trial(
            state=TrialState[state], value=0.1 if state == "COMPLETE" else None,
            user_attrs={REQUEUED: True} if again else {},
        )
        for state, again in kinds
    ]  # fmt: skip
    assert len(counted(trials)) == sum(state != "WAITING" and not again for state, again in kinds)


def test_only_one_process_at_a_time_is_let_in() -> None:
    def enter() -> AbstractContextManager[None]:
        return study_store.exclusive(workspace(), "s", "confirm", "is being confirmed")

    with enter(), pytest.raises(StudyError, match="is being confirmed by another process"), enter():
        pytest.fail("two were let in")
    with enter():
        pass


@pytest.mark.parametrize("password", ["hush", "hu$h", "hu`h", "hu h"])
def test_an_address_is_what_a_shell_reads_and_has_no_password(password: str) -> None:
    places = {
        "search.storage": f"postgresql://u:{password}@h/d$",
        "tracking.uri": f"postgresql://u:{password}@h/d",
    }
    words = shlex.split(study_arguments("s", places))
    assert words == [
        "study=s",
        "search.storage='postgresql://u:***@h/d$'",
        "tracking.uri='postgresql://u:***@h/d'",
    ]
    assert (
        study_arguments("s", {"search.storage": None, "tracking.uri": "sqlite:///x.db"})
        == "study=s \"tracking.uri='sqlite:///x.db'\""
    )
