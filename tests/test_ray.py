"""Ray on this machine, which a command starts itself: studies, confirmations and multiruns have the same bits."""

from __future__ import annotations

import shutil
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import mlflow
import pytest
from conftest import Project
from failing_services import Server, SlowConnection, assert_survives, small_disk
from typed_study import CONFIRM, TypedStudy, in_an_epoch, wait_until
from typed_study import typed_study as typed_study  # a fixture

from digit_study.study.trial_attributes import counted

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.skipif(
        find_spec("ray") is None,
        reason="the package ray is not installed: make cluster installs it",
    ),
    pytest.mark.skipif(" " in sys.executable, reason="Ray starts no Python in a path with a space"),
]
HERE = ("search.engine=ray", "search.address=local")


def weights(typed_study: TypedStudy, kind: str) -> dict[str, str]:
    """sha256 of the weights of every run of a study, by its trial's number or its candidate and seed."""
    found = [run.data.tags for run in typed_study.runs() if run.data.tags.get("kind") == kind]
    return {
        tags.get("trial.number") or f"{tags['candidate']} {tags['seed']}": tags["weights.sha256"]
        for tags in found
    }


def test_a_study_and_its_confirmation_give_the_same_bits_on_ray(typed_study: TypedStudy) -> None:
    beside = TypedStudy(
        typed_study.project, typed_study.uri, f"{typed_study.name}-ray"[-60:], typed_study.small
    )
    confirmed = "confirm.top=2", "confirm.seeds=2", "search.workers=2"
    for one, place in ((typed_study, ("training.threads=1",)), (beside, HERE)):
        done = one.run("search.workers=1", *place)
        assert (done.code, done.complaints) == (0, "")
        done = one.run(*confirmed, *(HERE if one is beside else ()), script=CONFIRM)
        assert (done.code, done.complaints) == (0, "")
    chosen = [
        [(trial.params, trial.values, trial.state) for trial in one.trials()]
        for one in (typed_study, beside)
    ]
    assert chosen[0] == chosen[1]
    for kind, number in (("trial", 3), ("confirmation-run", 4)):
        assert (
            weights(typed_study, kind) == weights(beside, kind)
            and len(weights(typed_study, kind)) == number
        )
    assert {run.data.tags["technical.engine"] for run in beside.runs()} == {"ray"}


def test_a_multirun_gives_the_same_bits_on_ray(
    project: Project, typed_store: str, small_npz: Path
) -> None:
    words = [
        "-m",
        "model=tiny",
        "model.filters=4,8",
        f"data.path={small_npz}",
        "data.validation=100",
    ]
    words += ["training.epochs=1", "training.threads=1"]
    client, found = mlflow.MlflowClient(typed_store), []
    for place in ([], ["engine=ray", "address=local"]):
        done = project.run(*words, *place, MLFLOW_TRACKING_URI=typed_store)
        assert done.code == 0 and "Comparison" in done.out, done.err
        runs = client.search_runs(["1"], "tags.`weights.sha256` != ''")
        found.append(
            {run.data.params["model.filters"]: run.data.tags["weights.sha256"] for run in runs[:2]}
        )
    assert found[0] == found[1] and len(found[0]) == 2 and sys.modules.get("ray") is None


def test_a_single_run_gives_the_same_bits_on_ray(
    project: Project, typed_store: str, small_npz: Path
) -> None:
    words = ["model=tiny", f"data.path={small_npz}", "data.validation=100"]
    words += ["training.epochs=1", "training.threads=1"]
    client = mlflow.MlflowClient(typed_store)
    found = []
    for place in ([], ["engine=ray", "address=local"]):
        done = project.run(*words, *place, MLFLOW_TRACKING_URI=typed_store)
        assert (done.code, done.complaints) == (0, "")
        run = client.search_runs(["1"])[0]
        assert run.info.status == "FINISHED" and run.info.run_id in done.out
        found.append(run.data.tags)
    assert found[0]["weights.sha256"] == found[1]["weights.sha256"]
    assert found[1]["technical.engine"] == "ray"
    assert not (project.root / "mlruns" / ".outbox" / run.info.run_id).exists()


def test_a_study_on_ray_survives_its_server(
    typed_study: TypedStudy, migrated: Path, tmp_path: Path
) -> None:
    server = Server(typed_study.project, migrated, tmp_path)
    server.ensure()
    try:
        typed_study.uri = server.uri
        words = "training.epochs=30", "search.trials=3", "search.workers=2"
        assert_survives(typed_study, server, typed_study.start(*words, *HERE))
    finally:
        server.kill()


def test_no_slot_waits_for_a_slow_server(
    typed_study: TypedStudy, migrated: Path, tmp_path: Path
) -> None:
    """What a trial leaves is told from the supervisor, and what it says while it runs is told beside it."""
    server = Server(typed_study.project, migrated, tmp_path)
    server.ensure()
    way = SlowConnection(server.port, 1.0)
    try:
        typed_study.uri = way.uri
        done = typed_study.run("training.epochs=30", "search.trials=4", "search.workers=2", *HERE)
        assert (done.code, typed_study.statuses("study")) == (0, ["FINISHED"]), done.err
        trials = [run for run in typed_study.runs() if run.data.tags.get("kind") == "trial"]
        assert [run.info.status for run in trials] == ["FINISHED"] * 4
        client = mlflow.MlflowClient(server.uri)
        for run in trials:
            assert len(client.get_metric_history(run.info.run_id, "train_loss")) == 30
            assert {one.path for one in client.list_artifacts(run.info.run_id)} >= {
                "figures",
                "tables",
                "config.yaml",
            }
        took = [(trial.datetime_complete, trial.datetime_start) for trial in typed_study.trials()]
        print(
            "seconds of the trials:",
            [(end - start).total_seconds() for end, start in took if end and start],
        )
    finally:
        server.kill()


def test_a_full_disk_of_the_supervisor_costs_no_trial_on_ray(
    typed_study: TypedStudy, migrated: Path
) -> None:
    with small_disk(typed_study.project.root / "mlruns", 96) as disk:
        typed_study.uri = f"sqlite:///{shutil.copy(migrated, disk.place / 'mlflow.db')}"
        command = typed_study.start(
            "training.epochs=30", "search.trials=3", "search.workers=2", *HERE
        )
        wait_until(lambda: in_an_epoch(typed_study, command), 300, "an epoch")
        disk.fill()
        time.sleep(8)  # the trials of that moment end meanwhile
        disk.free()
        done = command.finish()
        assert done.code == 0 and "Traceback" not in done.err, done.err
        assert "no trial is to blame" in done.err and "the machine is well again" in done.err
        assert [trial.state.name for trial in counted(typed_study.trials())] == ["COMPLETE"] * 3
        assert "RUNNING" not in {
            run.info.status for run in typed_study.runs()
        } and typed_study.statuses("study") == ["FINISHED"]
        assert not [path for path in (disk.place / ".outbox").iterdir() if path.is_dir()]
