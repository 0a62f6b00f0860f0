"""Studies on a Ray cluster of several hosts: kills, cuts, a host that joins, a head that goes."""

from __future__ import annotations

import re
import signal
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import optuna
import psutil
import pytest
from cluster import Host
from conftest import Command
from ray_hosts import BIN, PORT, WHY, RayHosts, ray_hosts
from typed_study import wait_until

from digit_study.study.trial_attributes import counted, failure_cause
from digit_study.trial.events import Failed
from digit_study.trial.runner import MAX_RETRIES, may_run_again

pytestmark = [pytest.mark.cluster, pytest.mark.skipif(bool(WHY), reason=WHY)]
SECRET = "hush-hush"


@pytest.fixture(scope="module")
def rays(small_npz: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RayHosts]:
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    with ray_hosts(4, tmp_path_factory.mktemp("hosts"), small_npz, running=[2, 3]) as found:
        yield found


def assert_ended(rays: RayHosts, study: str, total: int) -> None:
    """The total is met, and nothing is RUNNING in either store."""
    assert Counter(one.state.name for one in counted(rays.trials(study))) == {"COMPLETE": total}
    assert {one.state.name for one in rays.trials(study)} <= {"COMPLETE", "FAIL"}
    runs = rays.runs(study)
    assert {run.info.status for run in runs} <= {"FINISHED", "FAILED", "KILLED"}
    assert [run.info.status for run in runs if run.data.tags["kind"] == "study"] == ["FINISHED"]
    done = [
        run.data.tags
        for run in runs
        if run.info.status == "FINISHED" and run.data.tags["kind"] == "trial"
    ]
    assert {tags["technical.engine"] for tags in done} == {"ray"} and "host1" not in {
        tags["technical.host"] for tags in done
    }
    assert all(tags["technical.processor"] and tags["technical.cores"] for tags in done)


def test_a_plan_says_what_the_cluster_offers_and_starts_nothing(rays: RayHosts) -> None:
    done = rays.head.run([*rays.line("plan"), "--plan"], MLFLOW_TRACKING_URI=rays.uri)
    assert (
        "ray at auto: 3 nodes, 2 cores, 0 GPUs, capacity 2 trials of {cpu: 1} at a time" in done.out
    ), done.err
    assert re.search(r"host2: 1 cores, .*: capacity 1", done.out)
    assert re.search(r"host1: 0 cores, .*: capacity 0", done.out)
    assert rays.trials("plan") == [] and rays.actors() == []


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (
            ["search.workers=5"],
            "`workers` is at most the 2 trials of {cpu: 1} that fit on 3 nodes, got 5: lower it",
        ),
        (
            ["search.resources={gpu: 0.25}"],
            "asks for {cpu: 1, gpu: 0.25}, which no node has: cores, GPUs and memory are",
        ),
        (["search.resources={cpu: 2}"], "asks for {cpu: 2}, which no node has"),
        (
            ["search.address=10.0.0.9:6379"],
            "`address` must be of a Ray cluster that answers, got '10.0.0.9:6379'",
        ),
        (
            ["tracking.uri=sqlite:///mlflow.db"],
            "which is a file on host1: start `mlflow server --host 0.0.0.0",
        ),
        (
            ["tracking.uri=http://127.0.0.1:5000"],
            "cannot reach the tracking store at 127.0.0.1:5000",
        ),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_what_the_cluster_cannot_do_is_one_message_and_starts_nothing(
    words: list[str], told: str, rays: RayHosts
) -> None:
    done = rays.head.run(rays.line("none", *words), MLFLOW_TRACKING_URI=rays.uri, timeout=60)
    assert done.code == 1 and told in done.err and "Traceback" not in done.err, done.err
    assert rays.trials("none") == []


def test_a_cluster_of_another_ray_is_told(rays: RayHosts) -> None:
    """By a head that takes itself for an older one."""
    older = "import sys, ray; ray.__version__ = '2.0.0'; from ray.scripts.scripts import main; sys.exit(main())"
    words = ["start", "--head", f"--port={PORT}", "--num-cpus=1", "--include-dashboard=false"]
    four = rays.hosts[3]
    assert (
        four.run([sys.executable, "-c", older, *words, f"--node-ip-address={four.address}"]).code
        == 0
    )
    done = four.run(
        rays.line("none", "data.path=null", "data=mnist_sample"), MLFLOW_TRACKING_URI=rays.uri
    )
    assert (
        done.code == 1 and "Version mismatch: The cluster was started with: Ray: 2.0.0" in done.err
    ), done.err
    four.run([str(BIN / "ray"), "stop", "--force"])


def test_a_ctrl_c_leaves_no_actor_within_ten_seconds_and_no_password_was_shown(
    rays: RayHosts,
) -> None:
    command = rays.search(
        "stopped", "search.trials=50", "training.epochs=50", MLFLOW_TRACKING_PASSWORD=SECRET
    )
    wait_until(
        lambda: any(one.intermediate_values for one in rays.trials("stopped")), 90, "an epoch"
    )
    pattern = SECRET.replace("-", "[-]")  # which does not match itself
    for host in rays.hosts[:3]:
        shown = host.run(
            [
                "sh",
                "-c",
                f"grep -la '{pattern}' /proc/[0-9]*/cmdline; grep -rl '{pattern}' /tmp/ray",
            ]
        )
        assert shown.out == ""
    assert (
        "/environ"
        in rays.hosts[1].run(["sh", "-c", f"grep -la '{pattern}' /proc/[0-9]*/environ"]).out
    )
    jobs = rays.state("jobs")
    assert "ray_bridge" in jobs and "optuna_search" not in jobs and SECRET not in jobs
    stopped = time.monotonic()
    psutil.Process(command.process.pid).children()[0].send_signal(
        signal.SIGINT
    )  # the process in the namespaces
    assert command.finish(60).code == 130
    assert time.monotonic() - stopped < 15
    assert rays.actors() == []
    assert "RUNNING" not in {one.state.name for one in rays.trials("stopped")}
    assert "RUNNING" not in {run.info.status for run in rays.runs("stopped")}


def running_on(rays: RayHosts, study: str, host: Host, known: set[int]) -> int | None:
    """A trial on that host, in or after its first epoch, that is not among the known ones."""
    for one in rays.trials(study):
        is_there = one.user_attrs.get("worker", "").startswith(f"{host.name}:")
        if (
            is_there
            and one.state.name == "RUNNING"
            and one.intermediate_values
            and one.number not in known
        ):
            return one.number
    return None


def trial_on(rays: RayHosts, study: str, host: Host, known: set[int]) -> int:
    """:func:`running_on`, as soon as there is one; it is known then."""
    wait_until(
        lambda: running_on(rays, study, host, known) is not None, 300, f"a trial on {host.name}"
    )
    number = running_on(rays, study, host, known)
    assert number is not None
    known.add(number)
    return number


def known_as_ended(command: Command, number: int, seconds: float) -> None:
    wait_until(
        lambda: any(line.startswith(f"trial {number} ") for line in command.lines),
        seconds,
        f"{number}'s end",
    )


def processes(host: Host, words: str) -> list[tuple[int, int]]:
    """Process and parent of what a host runs with these words in its command line."""
    lines = host.run(["ps", "-ww", "-eo", "pid,ppid,args"]).out.splitlines()
    return [(int(line.split()[0]), int(line.split()[1])) for line in lines if words in line]


def test_a_full_disk_of_a_node_costs_no_trial(rays: RayHosts) -> None:
    """Trials there meet it at any moment, and it has room again while the study goes on."""
    two, command = rays.hosts[1], rays.search("crowded", "search.trials=10", "training.epochs=60")
    trial_on(rays, "crowded", two, set())
    used = "$(df -k --output=used / | tail -1)"
    assert two.run(["sh", "-c", f"mount -o remount,size=$(({used} + 16))k /"]).code == 0
    filled = two.run(["sh", "-c", "head -c 16k /dev/zero > /full"])
    assert (
        filled.code == 0 or "No space left on device" in filled.err
    )  # the trials there write as well
    wait_until(
        lambda: any("no fault of the trial" in line for line in command.lines),
        60,
        "a fault of the infrastructure",
    )
    assert two.run(["mount", "-o", "remount,size=50%", "/"]).code == 0
    done = command.finish(300)
    assert done.code == 0 and "Traceback" not in done.err, done.err
    assert "No space left on device" in done.err and "the machine is well again" in done.err
    assert_ended(rays, "crowded", 10)
    failed = [trial for trial in rays.trials("crowded") if trial.state.name == "FAIL"]
    assert failed
    for trial in failed:
        failure = Failed(trial.number, failure_cause(trial), trial.user_attrs["reason"])
        assert may_run_again(failure, MAX_RETRIES)


def test_a_study_outlives_a_trial_a_slot_a_node_and_a_link(rays: RayHosts) -> None:
    """kill -9 of a trial, of its slot, of a whole node; a host that joins; a link cut for 30 s, and one for good."""
    _, two, three, four = rays.hosts
    command, known = rays.search("chaos", "search.trials=36", "training.epochs=60"), set[int]()
    number = trial_on(rays, "chaos", two, known)
    forked = processes(two, "multiprocessing.forkserver")
    trials = [str(pid) for pid, _ in forked if pid not in {parent for _, parent in forked}]
    assert two.run(["kill", "-9", *trials]).code == 0
    known_as_ended(command, number, 60)

    number = trial_on(rays, "chaos", two, known)
    [slot] = [
        one.user_attrs["worker"].split(":")[1]
        for one in rays.trials("chaos")
        if one.number == number
    ]
    assert two.run(["kill", "-9", slot]).code == 0
    known_as_ended(command, number, 60)

    number = trial_on(rays, "chaos", three, known)
    three.kill_all()
    known_as_ended(command, number, 60)
    rays.join(four)
    number = trial_on(rays, "chaos", four, known)

    two.cut()
    time.sleep(30)
    two.restore()
    four_before = len(rays.trials("chaos"))
    wait_until(lambda: len(rays.trials("chaos")) > four_before, 300, "it goes on")
    three.boot()
    rays.join(three)
    trial_on(rays, "chaos", three, known)
    number = trial_on(rays, "chaos", four, known)
    four.cut()
    known_as_ended(command, number, 60)
    done = command.finish(400)
    assert (done.code, done.complaints) == (0, "")
    assert_ended(rays, "chaos", 36)
    reasons = Counter(one.user_attrs.get("reason") for one in rays.trials("chaos"))
    assert reasons["its slot was killed"] >= 1 and reasons["its node went away"] >= 2
    assert rays.actors() == []


@pytest.fixture
def two_rays(small_npz: Path, tmp_path: Path) -> Iterator[RayHosts]:
    with ray_hosts(2, tmp_path / "hosts", small_npz, running=[2]) as found:
        yield found


def test_without_its_head_a_command_ends_with_one_message_and_goes_on_later(
    two_rays: RayHosts,
) -> None:
    rays = two_rays
    words = "search.trials=10", "training.epochs=60"
    command = rays.search("headless", *words)
    wait_until(
        lambda: any(one.intermediate_values for one in rays.trials("headless")), 300, "an epoch"
    )
    ends = [
        pid for word in ("gcs_server", "raylet/raylet") for pid, _ in processes(rays.head, word)
    ]
    assert rays.head.run(["kill", "-9", *map(str, ends)]).code == 0
    done = command.finish(60)
    assert done.code == 1 and done.err.count("\n") == 1, done.err
    assert (
        "the Ray cluster at address=auto is gone" in done.err
        and "the same command then goes on" in done.err
    )
    assert "RUNNING" not in {one.state.name for one in rays.trials("headless")}
    assert "RUNNING" not in {run.info.status for run in rays.runs("headless")}
    for host in rays.hosts:
        host.run([str(BIN / "ray"), "stop", "--force"])
    rays.join(rays.head, cores=0)
    rays.join(rays.hosts[1])
    done = rays.search("headless", *words).finish(300)
    assert (done.code, done.complaints) == (0, "")
    assert_ended(rays, "headless", 10)
