"""What an engine offers, what a trial asks for, and what a node is told; no Ray, no process and no TensorFlow here."""

from __future__ import annotations

import errno
import os
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
from stub_worker import Stubs, plan

from digit_study.config.engine import EngineConfig, Node, common_precision, fitting, settle
from digit_study.config.run import Config, resolve_config
from digit_study.data import digits, sources
from digit_study.study import run_plan as runs_plan
from digit_study.study.search import run_study
from digit_study.support import machine
from digit_study.support.messages import StudyError
from digit_study.tracking import database as stores
from digit_study.tracking import provenance as origin
from digit_study.tracking import runs as run_log
from digit_study.tracking import spool as outbox
from digit_study.tracking import upload as delivery
from digit_study.trial.local import pool as local
from digit_study.trial.protocol import LOST, LOST_NODE, EngineContext
from digit_study.trial.ray import ray_actor as slot
from digit_study.trial.ray import ray_engine as on_ray

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
        ({"CPU": 8.0, "memory": 16 * GIB, "GPU": 3.0}, {"gpu": 2}, 1),
        ({"CPU": 1.0, "memory": 16 * GIB, "GPU": 8.0}, {"gpu": 1}, 1),
        ({"memory": 16 * GIB}, {}, 0),
    ],
)
def test_as_many_trials_fit_as_the_scarcest_resource_allows(
    has: dict[str, float], asked: dict[str, float], room: int
) -> None:
    assert fitting(has, {"cpu": 1, "gpu": 0, "memory": 0, **asked}) == room


def test_threads_follow_from_the_cores_of_a_trial() -> None:
    for resources, threads, expected in [
        ({"cpu": 4}, None, 4),
        ({"cpu": 4}, 2, 2),
        ({}, 3, 3),
        ({}, None, 1),
    ]:
        place = settle(EngineConfig(engine="ray", resources=resources), threads)
        training = replace(Config().training, threads=threads)
        config = Config(
            sources.DataConfig("mnist_sample"), training=training, resources=place.resources
        )
        assert resolve_config(config)[0].training.threads == expected
        assert place.resources["cpu"] == (resources.get("cpu") or threads or 1)
    assert settle(EngineConfig(), 4) == EngineConfig()


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


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["engine=ray"], "is for the runs of -m, got one run, which is trained here: add -m"),
        (
            ["-m", "engine=ray,local", "model.filters=4,8"],
            "are of the whole command, got a sweep over them",
        ),
        (["-m", "engine=rai", "model.filters=4,8"], "`engine` must be one of local, ray"),
    ],
)
def test_a_multirun_has_one_place(words: list[str], told: str) -> None:
    with pytest.raises(StudyError) as caught:
        runs_plan.plan([*words, "data=mnist_sample"])
    assert told in str(caught.value)


def test_ray_that_is_not_installed_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(on_ray, "find_spec", lambda name: None)
    with pytest.raises(
        StudyError,
        match=r"needs the package ray, which is not installed: pip install -e '.\[ray\]'",
    ):
        plan("search.engine=ray")


def test_an_environment_in_a_path_with_a_space_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(on_ray, "find_spec", lambda name: name)
    monkeypatch.setattr(sys, "executable", "/a b/python")
    with pytest.raises(
        StudyError, match=r"whose path has no space, got '/a b/python': make one elsewhere"
    ):
        plan("search.engine=ray", "search.address=local")


def test_a_cluster_that_does_not_answer_is_told_before_ray_is_asked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(on_ray, "find_spec", lambda name: name)
    for address in ("127.0.0.1:9", "ray://127.0.0.1:9"):
        with pytest.raises(
            StudyError,
            match=r"must be of a Ray cluster that answers, got '.*127.0.0.1:9' \(.*refused",
        ):
            plan("search.engine=ray", f"search.address={address}")


# ---------------------------------------------------------------------------------- an offer of a cluster


def surveyed(host: str, cores: float = 4.0, gpus: float = 0.0, **facts: Any) -> dict[str, Any]:
    resources = {"CPU": cores, "GPU": gpus, "memory": 16 * GIB}
    return {
        "host": host,
        "resources": resources,
        "precision": "float32",
        "processor": "P",
        "problem": None,
        **facts,
    }


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Stands for a cluster with these nodes."""

    def stand_in(*nodes: dict[str, Any]) -> None:
        monkeypatch.setattr(
            on_ray,
            "connect",
            lambda address: types.SimpleNamespace(call=lambda *asked: list(nodes)),
        )

    return stand_in


def test_workers_and_precision_are_those_of_the_nodes(cluster: Callable[..., None]) -> None:
    gpu = {"precision": "mixed_bfloat16", "gpus": 1.0}
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
    assert found.context.slots is None and found.context.place.resources == {
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
    words: list[str], nodes: list[dict[str, Any]], told: str, cluster: Callable[..., None]
) -> None:
    cluster(*nodes)
    with pytest.raises(StudyError) as caught:
        plan("search.engine=ray", *words)
    assert told in str(caught.value)


# ---------------------------------------------------------------------------------- what a node says and is given


def test_a_node_names_the_packages_it_lacks_with_their_versions() -> None:
    found = slot.look(slot.Needs({"numpy": "1", "no-such-package": "2.5"}))
    assert (
        found["problem"]
        == f"node {platform.node()} lacks no-such-package 2.5: install requirements.lock there"
    )
    whole = slot.look(slot.Needs({"numpy": "1"}))
    assert (
        whole["problem"] is None
        and whole["versions"] == {"numpy": np.__version__}
        and whole["cores"] >= 1
    )


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
    found = on_ray.needs(uri)
    assert (found.server, found.only_host) == (server, platform.node() if is_file else None)


def test_a_node_that_does_not_reach_the_store_says_what_to_do() -> None:
    elsewhere = slot.look(slot.Needs({}, only_host="another"))["problem"]
    assert (
        "a file on another: start `mlflow server" in elsewhere
        and "tracking.uri=http://another:5000" in elsewhere
    )
    with socket.create_server(("127.0.0.1", 0)) as server:
        place = server.getsockname()
        assert slot.look(slot.Needs({}, server=place))["problem"] is None
    assert (
        "cannot reach the tracking store at 127.0.0.1"
        in slot.look(slot.Needs({}, server=place))["problem"]
    )


def test_digits_that_are_handed_over_are_read_wherever_the_config_has_them(
    small_npz: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = sources.resolve(sources.DataConfig(path=str(small_npz))).config
    images, labels = sources.read_part(config, "train")
    monkeypatch.setenv(sources.HANDED_OVER, "")
    sources.hand_over(tmp_path / "digits", str(config.sha256), images, labels)
    elsewhere = sources.DataConfig(path="/not/here.npz", sha256=config.sha256, source=config.source)
    assert (
        digits.load_digits(elsewhere).train_images == digits.load_digits(config).train_images
    ).all()
    with pytest.raises(
        StudyError, match="there is none at /not/here.npz"
    ):  # the sealed test set stays where it is
        sources.read_part(elsewhere, "test")


class Deaf(slot.Slot):
    """A slot whose engine is a stub's."""

    def launcher(self, data: Any) -> Any:
        return Stubs(os.environ["MLFLOW_TRACKING_URI"])


def test_a_call_that_is_made_again_does_nothing_twice(
    store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where the network lost an answer: the trial is not started again, and no news is lost."""
    monkeypatch.setenv(sources.HANDED_OVER, "")
    found = plan("search.trials=1")
    images, labels = sources.read_part(found.run.data, "train")
    one = Deaf()
    one.open(
        slot.Needs({}),
        {},
        pickle.dumps(EngineContext()),
        str(found.run.data.sha256),
        images,
        labels,
    )
    run_id = run_log.create_run(found.run, store, found.dataset)
    submit = pickle.dumps(("submit", (7, found.run, run_id)))
    first = one.turn(1, submit, 0, 0.1)
    assert one.turn(1, submit, 0, 0.1) == first and [kind for _, kind, _ in first] == ["epoch"]
    answer = pickle.dumps(("answer", (7, True)))
    second = one.turn(2, answer, first[-1][0], 0.1)
    assert one.turn(2, answer, first[-1][0], 0.1) == second and second[0][0] == first[-1][0] + 1
    with pytest.raises(ValueError, match="are not those of sha256 0000"):
        Deaf().open(slot.Needs({}), {}, pickle.dumps(EngineContext()), "0" * 64, images, labels)


def test_what_a_node_did_not_tell_the_store_is_told_from_here(
    tmp_path: Path, store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a run of which this machine has something to tell too; twice, as where a disk was full in between."""
    run_id, here = run_log.create_run(Config(), store, "mnist"), stores.OUTBOX
    with monkeypatch.context() as elsewhere:
        elsewhere.setattr(stores, "ARTIFACTS", tmp_path / "node" / "mlruns")
        elsewhere.setattr(stores, "OUTBOX", tmp_path / "node" / "mlruns" / ".outbox")
        log = run_log.RunLog(store, run_id)
        log.metrics({"val_accuracy": 0.5}, 1)  # this the store has
        log.fault = "is slow"
        log.metrics({"val_accuracy": 0.6}, 2)
        (log.folder / "tables").mkdir()
        (log.folder / "tables" / "a.csv").write_text("a\n1\n")
        assert slot.unsent(run_id) is None  # it goes on
        log.spooled.end("FINISHED")
        packed = slot.unsent(run_id)
        assert packed is not None and not log.folder.exists() and slot.unsent(run_id) is None
    spooled = outbox.SpooledRun(run_id)
    spooled.put(store, tags={"trial.state": "COMPLETE"})
    for _ in range(2):
        on_ray.keep_here(store, packed)
    assert spooled.folder == here / run_id and len(spooled.records().found) == 3
    client = mlflow.MlflowClient(store)
    assert delivery.send(spooled, client) is None and not spooled.folder.exists()
    run = client.get_run(run_id)
    assert (run.info.status, run.data.tags["trial.state"]) == ("FINISHED", "COMPLETE")
    assert [one.value for one in client.get_metric_history(run_id, "val_accuracy")] == [0.5, 0.6]
    assert [one.path for one in client.list_artifacts(run_id, "tables")] == ["tables/a.csv"]


@pytest.mark.slow
def test_a_trial_whose_node_goes_away_again_and_again_uses_up_no_retry(
    store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three times: a killed process of its own is run again once only."""
    from digit_study.report.figures import optuna_figures as study_pictures
    from digit_study.trial import health
    from digit_study.trial.local.pool import LocalEngine
    from digit_study.trial.local.worker import TrialDied

    monkeypatch.setattr(health, "PAUSE_S", 0.05)
    monkeypatch.setattr(study_pictures, "write", lambda *drawn: None)
    stubs, times = Stubs(store), iter(range(3))

    def launch(config: Config, run_id: str) -> Any:
        if next(times, None) is not None:
            raise TrialDied(LOST_NODE)
        return stubs(config, run_id)

    view = run_study(plan("search.trials=1"), lambda limits: LocalEngine(limits, launch))
    assert [one.state.name for one in view.trials()] == ["FAIL"] * 3 + ["COMPLETE"]
    assert {one.user_attrs.get("reason") for one in view.trials()} == {
        LOST_NODE,
        None,
    } and LOST_NODE in LOST


def test_a_comparison_over_unlike_machines_says_so() -> None:
    alike = [{"processor": "A", "cores": "2", "version.keras": "3"}] * 3
    assert origin.mixture(list(alike)) == ""
    told = origin.mixture([*alike, {"processor": "B", "cores": "2", "version.keras": "4"}])
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

    def stand_in(*capabilities: float, visible: str | None = None) -> None:
        told[:] = [f"{number}, GPU-{number}, {at}" for number, at in enumerate(capabilities)]
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        if visible is not None:
            monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
        machine.gpus.cache_clear()
        machine.resolve_precision.cache_clear()

    yield stand_in
    monkeypatch.undo()
    machine.gpus.cache_clear()
    machine.resolve_precision.cache_clear()


@pytest.mark.parametrize(
    ("capabilities", "visible", "precision"),
    [
        ((9.0,), None, "mixed_bfloat16"),
        ((8.0, 8.6), None, "mixed_bfloat16"),
        ((7.5,), None, "float32"),
        ((9.0, 7.5), None, "float32"),
        ((9.0, 7.5), "0", "mixed_bfloat16"),
        ((7.5, 9.0), "GPU-0", "float32"),
    ],
)
def test_gpus_decide_what_precision_auto_means(
    capabilities: tuple[float, ...],
    visible: str | None,
    precision: str,
    driver: Callable[..., None],
) -> None:
    driver(*capabilities, visible=visible)
    assert machine.resolve_precision("auto") == precision
    assert machine.resolve_precision("float32") == "float32"


def test_trials_on_a_gpu_are_as_many_as_fit_on_it(driver: Callable[..., None]) -> None:
    driver(9.0, 9.0)
    assert [one.room for one in local.offer(EngineConfig(), "")] == [1]
    assert [one.room for one in local.offer(EngineConfig(resources={"gpu": 0.5}), "")] == [
        min(2, machine.cores())
    ]
    driver(visible="")
    assert [one.room for one in local.offer(EngineConfig(), "")] == [machine.cores()]


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


def test_a_result_of_a_node_waits_until_this_disk_has_room(monkeypatch: pytest.MonkeyPatch) -> None:
    engine, full = object.__new__(on_ray.RayEngine), [True]

    kept: list[bytes] = []

    def keep_here(uri: str, unsent: bytes) -> None:
        if full[0]:
            raise OSError(errno.ENOSPC, "No space left on device")
        kept.append(unsent)

    monkeypatch.setattr(on_ray, "keep_here", keep_here)
    news = [[("event", 3, pickle.dumps(("done", "result", b"tar"))), ("lost", 4, "node")], [], []]
    engine.bridge = types.SimpleNamespace(call=lambda *_: (news.pop(0), 1))  # type: ignore[assignment]
    engine.untold, engine.store = [], "http://server"
    assert [event.key for event in engine.events()] == [4]
    assert list(engine.events()) == []
    full[0] = False
    assert [(event.key, event.content) for event in engine.events()] == [(3, "result")]
    assert kept == [b"tar"]
