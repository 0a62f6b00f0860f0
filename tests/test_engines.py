"""What an engine offers, what a trial asks for, and what a node is told; no Ray, no process and no TensorFlow here."""

from __future__ import annotations

import errno
import json
import pickle
import platform
import socket
import subprocess
import sys
import types
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pytest
from stub_worker import Stubs, draw_no_studies, plan, states, workspace

from digit_study.config.engine_config import (
    EngineConfig,
    Node,
    capacity,
    common_precision,
    with_defaults,
)
from digit_study.config.run_config import Config, resolve_config
from digit_study.data import digits, sources
from digit_study.study import run_plan
from digit_study.study.search import run_study
from digit_study.support import hardware, processes
from digit_study.support.errors import StudyError
from digit_study.support.workspace import Workspace
from digit_study.tracking import provenance
from digit_study.tracking.session import Tracker
from digit_study.trial.events import (
    LOST_REASONS,
    Decision,
    EpochDone,
    Event,
    Failed,
    FailureCause,
    Finished,
)
from digit_study.trial.health import Health
from digit_study.trial.local import pool
from digit_study.trial.local.pool import LocalEngine
from digit_study.trial.local.process import TrialDied
from digit_study.trial.protocol import EngineContext, TrialRequest
from digit_study.trial.ray import ray_engine
from digit_study.trial.ray.messages import (
    ActorEvent,
    ActorSetup,
    Answer,
    Requirements,
    TrialPhase,
)
from digit_study.trial.ray.ray_actor import TrialActor, inspect_node

GIB = 2.0**30


@pytest.mark.parametrize(
    ("has", "asked", "room"),
    [
        ({"CPU": 8.0, "memory": 16 * GIB}, {}, 8),
        ({"CPU": 8.0, "memory": 16 * GIB}, {"cpu": 4}, 2),
        ({"CPU": 7.0, "memory": 16 * GIB}, {"cpu": 4}, 1),
        ({"CPU": 8.0, "memory": 16 * GIB}, {"memory": 8}, 2),
        ({"CPU": 8.0, "memory": 16 * GIB}, {"gpu": 0.25}, 0),
        ({"CPU": 8.0, "memory": 16 * GIB, "GPU": 1.0}, {"gpu": 0.25}, 4),
        ({"CPU": 8.0, "memory": 16 * GIB, "GPU": 2.0}, {"gpu": 0.3}, 6),  # three on each
        ({"CPU": 8.0, "memory": 16 * GIB, "GPU": 1.0}, {"gpu": 0.2}, 5),  # 1.0 // 0.2 is 4
        ({"CPU": 64.0, "memory": 16 * GIB, "GPU": 2.0}, {"gpu": 0.05}, 40),
        ({"CPU": 8.0, "memory": 16 * GIB, "GPU": 3.0}, {"gpu": 2}, 1),
        ({"CPU": 1.0, "memory": 16 * GIB, "GPU": 8.0}, {"gpu": 1}, 1),
        ({"memory": 16 * GIB}, {}, 0),
    ],
)
def test_as_many_trials_fit_as_the_scarcest_resource_allows(
    has: dict[str, float], asked: dict[str, float], room: int
) -> None:
    assert capacity(has, {"cpu": 1, "gpu": 0, "memory": 0, **asked}) == room


def test_threads_follow_from_the_cores_of_a_trial() -> None:
    for resources, threads, expected in [
        ({"cpu": 4}, None, 4),
        ({"cpu": 4}, 2, 2),
        ({}, 3, 3),
        ({}, None, 1),
    ]:
        place = with_defaults(EngineConfig(engine="ray", resources=resources), threads)
        training = replace(Config().training, threads=threads)
        config = Config(
            sources.DataConfig("mnist_sample"), training=training, resources=place.resources
        )
        assert resolve_config(config)[0].training.threads == expected
        assert place.resources["cpu"] == (resources.get("cpu") or threads or 1)
    assert with_defaults(EngineConfig(), 4) == EngineConfig()


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (
            "search.resources={gpus: 1}",
            "`search.resources` may have cpu, gpu, memory, got 'gpus'; did you mean 'gpu'?",
        ),
        (
            "search.resources={cpu: 0.5}",
            "`search.resources` must give cpu as a whole number of cores, got 0.5",
        ),
        ("search.resources={gpu: 1.5}", "`search.resources` must give gpu as a whole number"),
        (
            "search.resources={memory: much}",
            "`search.resources` must give memory as a number of GiB, got 'much'",
        ),
        (
            "search.resources={cpu: -1}",
            "`search.resources` must give cpu as a number of cores, got -1",
        ),
        (
            "search.address=auto",
            "`search.address` is of a cluster, got 'auto' with search.engine=local",
        ),
        (
            "search.engine=rai",
            "`search.engine` must be one of local, ray, got 'rai'; did you mean 'ray'?",
        ),
        ("search.resources={cpu: 4096}", "asks for {cpu: 4096}, but this machine has"),
    ],
)
def test_a_place_that_cannot_be_is_told(words: str, told: str) -> None:
    with pytest.raises(StudyError) as caught:
        plan(words)
    assert told in str(caught.value)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "told"),
    [
        (
            ["-m", "engine=ray,local", "model.filters=4,8"],
            "are of the whole command, got a sweep over them",
        ),
        (["-m", "engine=rai", "model.filters=4,8"], "`engine` must be one of local, ray"),
    ],
)
def test_a_multirun_has_one_place(words: list[str], told: str) -> None:
    with pytest.raises(StudyError) as caught:
        run_plan.plan_runs([*words, "data=mnist_sample"], workspace())
    assert told in str(caught.value)


def test_ray_that_is_not_installed_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_engine, "find_spec", lambda name: None)
    with pytest.raises(
        StudyError,
        match=r"needs the package ray, which is not installed: pip install -e '.\[ray\]'",
    ):
        plan("search.engine=ray")


def test_an_environment_in_a_path_with_a_space_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_engine, "find_spec", lambda name: name)
    monkeypatch.setattr(sys, "executable", "/a b/python")
    with pytest.raises(
        StudyError, match=r"whose path has no space, got '/a b/python': make one elsewhere"
    ):
        plan("search.engine=ray", "search.address=local")


def test_a_cluster_that_does_not_answer_is_told_before_ray_is_asked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(ray_engine, "find_spec", lambda name: name)
    for address in ("127.0.0.1:9", "ray://127.0.0.1:9"):
        with pytest.raises(
            StudyError,
            match=r"must be of a Ray cluster that answers, got '.*127.0.0.1:9' \(.*refused",
        ):
            plan("search.engine=ray", f"search.address={address}")


# ---------------------------------------------------------------------------------- an offer of a cluster


def surveyed(
    host: str, cores: float = 4.0, gpus: float = 0.0, precision: str = "float32", **facts: Any
) -> Node:
    """Return a node on which as many trials fit as the stand-in for a cluster counts."""
    return Node(host, cores, gpus, 16.0, "P", precision, 0, **facts)


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Stands for a cluster with these nodes."""

    def stand_in(*nodes: Node) -> None:
        def survey(name: str, requirements: Requirements, asked: dict[str, float]) -> list[Node]:
            found = []
            for node in nodes:
                has = {"CPU": node.cores, "GPU": node.gpus, "memory": node.memory * GIB}
                found.append(replace(node, capacity=capacity(has, asked)))
            return found

        connection = types.SimpleNamespace(call=survey)
        monkeypatch.setattr(ray_engine, "connect", lambda address, workspace: connection)

    return stand_in


def test_workers_and_precision_are_those_of_the_nodes(cluster: Callable[..., None]) -> None:
    gpu: dict[str, Any] = {"precision": "mixed_bfloat16", "gpus": 1.0}
    cluster(surveyed("head", 0.0), surveyed("a", 8.0, **gpu), surveyed("b", 2.0, **gpu))
    found = plan(
        "search.engine=ray",
        "search.workers=null",
        "search.resources={cpu: 2, gpu: 0.25}",
        "search.trials=99",
    )
    assert (found.workers, found.run.training.threads, found.run.training.precision) == (
        5,
        2,
        "mixed_bfloat16",
    )
    assert found.context.slots is None and found.context.options.resources == {
        "cpu": 2,
        "gpu": 0.25,
        "memory": 0,
    }
    cluster(surveyed("a"), surveyed("b", precision="mixed_bfloat16"))
    found = plan("search.engine=ray", "search.workers=3")
    assert (found.workers, found.context.slots, found.run.training.precision) == (3, 3, "float32")


@pytest.mark.parametrize(
    ("words", "nodes", "told"),
    [
        (
            ["search.workers=9"],
            [surveyed("a"), surveyed("b")],
            "at most the 8 trials of {cpu: 1} that fit on 2 nodes",
        ),
        (
            ["search.resources={gpu: 1}"],
            [surveyed("a")],
            "no node has: cores, GPUs and memory are a 4, 0 and 16.0",
        ),
        ([], [], "which no node has: cores, GPUs and memory are none"),
        (
            [],
            [surveyed("a"), surveyed("b", problem="node b lacks keras 3.15.1")],
            "node b lacks keras 3.15.1",
        ),
    ],
)
def test_what_a_cluster_cannot_do_is_told(
    words: list[str], nodes: list[Node], told: str, cluster: Callable[..., None]
) -> None:
    cluster(*nodes)
    with pytest.raises(StudyError) as caught:
        plan("search.engine=ray", *words)
    assert told in str(caught.value)


# ---------------------------------------------------------------------------------- what a node says and is given


def test_a_node_names_the_packages_it_lacks_with_their_versions() -> None:
    found = inspect_node(Requirements({"numpy": "1", "no-such-package": "2.5"}))
    assert found.problem == (
        f"node {platform.node()} lacks no-such-package 2.5: install requirements.lock there"
    )
    whole = inspect_node(Requirements({"numpy": "1"}))
    assert whole.problem is None
    assert whole.versions == {"numpy": np.__version__}
    assert whole.cores >= 1


@pytest.mark.parametrize(
    ("uri", "server", "is_file"),
    [
        ("sqlite:////x/mlflow.db", None, True),
        ("http://user:p@ss@host:5000", ("host", 5000), False),
        ("https://host/mlflow", ("host", 443), False),
        ("postgresql+psycopg://u:p@db/x", ("db", 5432), False),
        ("http://[::1]:80", ("::1", 80), False),
        ("databricks://profile", None, False),
    ],
)
def test_what_a_node_must_reach(uri: str, server: tuple[str, int] | None, is_file: bool) -> None:
    found = ray_engine.requirements_for(uri)
    assert (found.server, found.only_host) == (server, platform.node() if is_file else None)


def test_a_node_that_does_not_reach_the_store_says_what_to_do() -> None:
    elsewhere = str(inspect_node(Requirements({}, only_host="another")).problem)
    assert "a file on another: start `mlflow server" in elsewhere
    assert "tracking.uri=http://another:5000" in elsewhere
    with socket.create_server(("127.0.0.1", 0)) as server:
        requirements = Requirements({}, server=server.getsockname())
        assert inspect_node(requirements).problem is None
    problem = str(inspect_node(requirements).problem)
    assert "cannot reach the tracking store at 127.0.0.1" in problem


def test_digits_that_are_handed_over_are_read_wherever_the_config_has_them(
    small_npz: Path, tmp_path: Path
) -> None:
    config = sources.resolve(sources.DataConfig(path=str(small_npz))).config
    images, labels = sources.read_part(config, "train")
    sources.store_train_part(tmp_path, str(config.sha256), images, labels)
    elsewhere = sources.DataConfig(path="/not/here.npz", sha256=config.sha256, source=config.source)
    handed_over = digits.load_digits(elsewhere, tmp_path).train_images
    assert (handed_over == digits.load_digits(config).train_images).all()
    with pytest.raises(StudyError, match="there is none at /not/here.npz"):
        sources.read_part(elsewhere, "test", tmp_path)  # the sealed test set stays where it is


def test_digits_that_have_changed_since_the_plan_are_told_before_they_are_sent(
    small_npz: Path, store: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    path = tmp_path / "mine.npz"
    path.write_bytes(small_npz.read_bytes())
    config = sources.resolve(sources.DataConfig(path=str(path))).config
    with np.load(small_npz) as digits_there:
        np.savez(path, **{**digits_there, "y_train": digits_there["y_train"][::-1]})
    sources.read_path(small_npz, "train")  # as by -m over several paths: one file is kept in memory
    called: list[Any] = []
    connection = types.SimpleNamespace(call=lambda *asked: called.append(asked))
    monkeypatch.setattr(ray_engine, "connect", lambda address, workspace: connection)
    context = EngineContext(workspace=Workspace(tmp_path), data=config, tracking_uri=store)
    with pytest.raises(StudyError, match=f"says {config.sha256}, but the digits of mine are"):
        ray_engine.RayEngine(context)
    assert not called


class StubActor(TrialActor):
    """An actor whose engine runs stubs."""

    def local_engine(self, context: EngineContext) -> LocalEngine:
        return Stubs(context.tracking_uri).engine(context)


def test_a_call_that_is_made_again_does_nothing_twice(store: str, tmp_path: Path) -> None:
    """As where the network lost an answer.

    The trial is not started again, and no event is lost.
    """
    found = plan("search.trials=1")
    images, labels = sources.read_part(found.run.data, "train")
    context = EngineContext(workspace=Workspace(Path("/the/supervisors")), tracking_uri=store)
    setup = ActorSetup(Requirements({}), {}, pickle.dumps(context), str(found.run.data.sha256))
    actor = StubActor(tmp_path)
    actor.open(setup, images, labels)
    tracker = Tracker(store, workspace())
    run_id = tracker.create_run(found.run, found.dataset)
    submit = pickle.dumps(TrialRequest(7, found.run, run_id))
    first = actor.exchange(1, submit, 0, 0.1)
    assert actor.exchange(1, submit, 0, 0.1) == first
    assert [event.phase for event in first] == [TrialPhase.WAITING]
    event, packed = pickle.loads(first[0].content)
    assert isinstance(event, EpochDone) and event.key == 7 and packed is None
    answer = pickle.dumps(Answer(7, Decision.CONTINUE))
    second = actor.exchange(2, answer, first[-1].number, 0.1)
    assert actor.exchange(2, answer, first[-1].number, 0.1) == second
    assert second[0].number == first[-1].number + 1
    with pytest.raises(ValueError, match="are not those of sha256 0000"):
        StubActor(tmp_path).open(replace(setup, sha256="0" * 64), images, labels)


def test_what_a_node_has_not_uploaded_is_uploaded_from_here(tmp_path: Path, store: str) -> None:
    """Of a run of which this machine has something too; twice, as after a full disk."""
    tracker = Tracker(store, workspace())
    run_id = tracker.create_run(Config(), "mnist")
    node = Tracker(store, Workspace(tmp_path / "node"))
    node.workspace.artifacts.mkdir(parents=True)
    writer = node.writer(run_id)
    writer.metrics({"val_accuracy": 0.5}, 1)  # the store has this
    writer.fault = "is slow"
    writer.metrics({"val_accuracy": 0.6}, 2)
    (writer.folder / "tables").mkdir()
    (writer.folder / "tables" / "a.csv").write_text("a\n1\n")
    assert node.pack(run_id) is None  # it goes on
    writer.finish()
    packed = node.pack(run_id)
    assert packed is not None and not writer.folder.exists() and node.pack(run_id) is None
    tracker.spooled(run_id).put(store, tags={"trial.state": "COMPLETE"})
    for _ in range(2):
        tracker.unpack(packed)
    assert tracker.is_spooled(run_id)
    tracker.upload_now(run_id)
    assert not tracker.is_spooled(run_id)
    client = mlflow.MlflowClient(store)
    run = client.get_run(run_id)
    assert (run.info.status, run.data.tags["trial.state"]) == ("FINISHED", "COMPLETE")
    history = client.get_metric_history(run_id, "val_accuracy")
    assert [point.value for point in history] == [0.5, 0.6]
    assert [file.path for file in client.list_artifacts(run_id, "tables")] == ["tables/a.csv"]


def test_what_a_node_has_uploaded_belongs_to_the_run_before_the_rest_is_uploaded(
    tmp_path: Path, store: str
) -> None:
    tracker = Tracker(store, workspace())
    run_id = tracker.create_run(Config(), "mnist")
    node = Tracker(store, Workspace(tmp_path / "node"))
    node.workspace.artifacts.mkdir(parents=True)
    writer = node.writer(run_id)
    writer.metrics({"val_accuracy": 0.5, "parameters": 9.0}, 1)  # the store has these
    writer.fault = "is slow"
    writer.result({"val_accuracy": 0.6}, 2)
    writer.finish()
    packed = node.pack(run_id)
    assert packed is not None
    tracker.unpack(packed)
    assert tracker.epoch_values(run_id, "val_accuracy") == {1: 0.5, 2: 0.6}
    assert tracker.finished_metrics(run_id) == {"val_accuracy": 0.6, "parameters": 9.0}


def test_an_engine_stops_although_the_disk_is_full(store: str, tmp_path: Path) -> None:
    """A run whose process was killed while it drew figures cannot be ended then."""
    within = Workspace(tmp_path)
    run = Tracker(store, within).spooled("a-run")
    run.folder.mkdir(parents=True)
    gone = processes.process_name().rsplit(":", 1)[0] + ":1.00"
    (run.folder / "about.json").write_text(json.dumps({"uri": store, "owner": gone}))
    (run.folder / "log.jsonl").mkdir()  # which nothing can be written to
    assert run.is_abandoned
    engine = Stubs(store).engine(EngineContext(workspace=within, tracking_uri=store))
    killed: Any = types.SimpleNamespace(run_id="a-run", stop=lambda grace: None)
    engine.finishing.append(killed)
    engine.stop()
    assert not engine.finishing


class FullDiskEngine(LocalEngine):
    """An engine whose events a full disk holds back for some calls."""

    def __init__(self, context: EngineContext, launch: Any, calls: float) -> None:
        super().__init__(context, launch)
        self._calls = calls

    def events(self, timeout: float = 0.5) -> Iterator[Event]:
        if self._calls > 0:
            self._calls -= 1
            raise OSError(errno.ENOSPC, "No space left on device")
        return super().events(timeout)


def test_a_disk_that_holds_events_back_is_an_outage(
    store: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    draw_no_studies(monkeypatch)
    found = plan("search.trials=1")
    health = Health(found.uri, found.workspace, 10, "search.outage_timeout", first_pause=0.01)
    view = run_study(found, lambda context: FullDiskEngine(context, Stubs(store), 2), health=health)
    assert states(view) == ["COMPLETE"]
    told = capsys.readouterr().err
    assert "No space left on device: no trial is to blame" in told.replace("\n", " ")


def test_a_disk_that_holds_events_back_for_good_ends_the_command(store: str) -> None:
    found = plan("search.trials=1", "search.outage_timeout=0")
    with pytest.raises(StudyError, match="No space left on device: mend that"):
        run_study(found, lambda context: FullDiskEngine(context, Stubs(store), float("inf")))


@pytest.mark.slow
def test_a_trial_whose_node_goes_away_again_and_again_uses_up_no_retry(
    store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three times: a trial whose own process is killed runs again once only."""
    from digit_study.report.figures import optuna_figures

    monkeypatch.setattr(optuna_figures, "write", lambda *drawn: None)
    stubs = Stubs(store)
    times = iter(range(3))
    reason = LOST_REASONS[FailureCause.NODE]

    def launch(request: TrialRequest) -> Any:
        if next(times, None) is not None:
            raise TrialDied(reason, FailureCause.NODE)
        return stubs(request)

    view = run_study(plan("search.trials=1"), lambda context: LocalEngine(context, launch))
    assert [trial.state.name for trial in view.trials()] == ["FAIL"] * 3 + ["COMPLETE"]
    assert {trial.user_attrs.get("reason") for trial in view.trials()} == {reason, None}


def test_a_comparison_over_unlike_machines_says_so() -> None:
    alike = [{"processor": "A", "cores": "2", "version.keras": "3"}] * 3
    assert provenance.mixture(list(alike)) == ""
    told = provenance.mixture([*alike, {"processor": "B", "cores": "2", "version.keras": "4"}])
    assert (
        "processor A (3) and B (1)" in told
        and "keras 3 (3) and 4 (1)" in told
        and "cores" not in told
    )


# ---------------------------------------------------------------------------------- GPUs, by stand-ins


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """Stands for NVIDIA's driver with GPUs of these compute capabilities."""
    told: list[str] = []
    monkeypatch.setattr(subprocess, "check_output", lambda *asked, **how: "\n".join(told))

    def stand_in(*capabilities: float | str, visible: str | None = None) -> None:
        told[:] = [f"{number}, GPU-{number}, {at}" for number, at in enumerate(capabilities)]
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        if visible is not None:
            monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
        hardware.gpus.cache_clear()
        hardware.resolve_precision.cache_clear()

    yield stand_in
    monkeypatch.undo()
    hardware.gpus.cache_clear()
    hardware.resolve_precision.cache_clear()


@pytest.mark.parametrize(
    ("capabilities", "visible", "precision"),
    [
        ((9.0,), None, "mixed_bfloat16"),
        ((8.0, 8.6), None, "mixed_bfloat16"),
        ((7.5,), None, "float32"),
        ((9.0, 7.5), None, "float32"),
        ((9.0, 7.5), "0", "mixed_bfloat16"),
        ((7.5, 9.0), "GPU-0", "float32"),
        (("[N/A]", 9.0), None, "float32"),
        (("[N/A]", 9.0), "1", "mixed_bfloat16"),
    ],
)
def test_gpus_decide_what_precision_auto_means(
    capabilities: tuple[float | str, ...],
    visible: str | None,
    precision: str,
    driver: Callable[..., None],
) -> None:
    driver(*capabilities, visible=visible)
    assert hardware.resolve_precision("auto") == precision
    assert hardware.resolve_precision("float32") == "float32"


def test_trials_on_a_gpu_are_as_many_as_fit_on_it(driver: Callable[..., None]) -> None:
    driver(9.0, 9.0)
    assert [node.capacity for node in pool.available_nodes(EngineConfig())] == [1]
    shared = EngineConfig(resources={"gpu": 0.5})
    assert [node.capacity for node in pool.available_nodes(shared)] == [min(2, hardware.cores())]
    driver(visible="")
    assert [node.capacity for node in pool.available_nodes(EngineConfig())] == [hardware.cores()]


def test_nodes_that_differ_train_in_float32() -> None:
    nodes = [Node("a", 1, 0, 1, "P", "mixed_bfloat16", 1), Node("b", 1, 0, 1, "P", "float32", 0)]
    assert common_precision(nodes) == "mixed_bfloat16"  # no trial fits on the other
    assert common_precision([*nodes, Node("c", 1, 0, 1, "P", "float32", 1)]) == "float32"


def test_the_memory_of_gpus_grows_as_it_is_needed_and_operations_are_determined(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """On a stand-in for tf.config: no GPU is at hand."""
    from digit_study.model import fit

    called: list[tuple[str, Any]] = []

    def note(name: str) -> Callable[..., None]:
        return lambda *given: called.append((name, given))

    experimental = types.SimpleNamespace(
        enable_op_determinism=note("determined"), set_memory_growth=note("grows")
    )
    threading = types.SimpleNamespace(
        set_intra_op_parallelism_threads=note("threads"),
        set_inter_op_parallelism_threads=note("threads"),
    )
    config = types.SimpleNamespace(
        experimental=experimental,
        threading=threading,
        list_physical_devices=lambda kind: [f"{kind}:0", f"{kind}:1"],
    )
    monkeypatch.setattr(fit, "tf", types.SimpleNamespace(config=config))
    fit.use_threads(2)
    assert called == [
        ("threads", (2,)), ("threads", (2,)), ("determined", ()), ("grows", ("GPU:0", True)), ("grows", ("GPU:1", True))
    ]  # fmt: skip


def test_a_result_of_a_node_waits_until_this_disk_has_room() -> None:
    full = [True]
    kept: list[bytes] = []

    def unpack(packed: bytes) -> None:
        if full[0]:
            raise OSError(errno.ENOSPC, "No space left on device")
        kept.append(packed)

    done = Finished(3, "result")  # type: ignore[arg-type]
    lost = Failed(4, FailureCause.NODE, "its node went away")
    arrived = ActorEvent(1, 1, TrialPhase.ENDED, pickle.dumps((done, b"tar")))
    news: list[list[Any]] = [[arrived, lost], [], []]
    engine: Any = object.__new__(ray_engine.RayEngine)
    engine._connection = types.SimpleNamespace(call=lambda *_: (news.pop(0), 1))
    engine._tracker = types.SimpleNamespace(unpack=unpack)
    engine._news = []
    found: list[Any] = []
    for _ in range(2):
        with pytest.raises(OSError, match="No space left"):
            found.extend(engine.events())
    assert found == [lost]
    full[0] = False
    assert list(engine.events()) == [done]
    assert kept == [b"tar"]
